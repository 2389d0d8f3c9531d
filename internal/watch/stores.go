package watch

import (
	"context"
	"fmt"
	"time"

	"github.com/stormpost/stormpost/internal/incident"
	"github.com/stormpost/stormpost/internal/message"
)

// LedgerAway checks that the ledger answers and can be written to, as ping says.
func LedgerAway(ping func(context.Context) error, now func() time.Time) Check {
	var since time.Time
	return Check{Kinds: []incident.Kind{incident.LedgerAway}, Timeout: 2 * time.Second, Look: func(ctx context.Context) ([]incident.Condition, error) {
		began := now()
		err := ping(ctx)
		if err == nil {
			since = time.Time{}
			return nil, nil
		}
		if since.IsZero() {
			since = began
		}
		return []incident.Condition{{
			Kind: incident.LedgerAway, Oldest: now().Sub(since), Summary: fmt.Sprintf("the ledger (PostgreSQL) is away: %v", err),
		}}, nil
	}}
}

// Kafka is what a process knows of a Kafka cluster.
type Kafka struct {
	Name      string        // empty where there is but one
	Used      bool          // lanes use it
	Away      error         // nil while it answers
	For       time.Duration // how long it has been away
	Changed   string        // how it became another one than it was, last; empty: it didn't
	ChangedAt time.Time
}

// KafkaAway checks what status says. That Kafka was wiped, rolled back or
// replaced is told of for noteFor, since nothing has to be done about it.
func KafkaAway(status func() []Kafka, now func() time.Time) Check {
	const noteFor = 5 * time.Minute
	return Check{Kinds: []incident.Kind{incident.KafkaAway, incident.ClusterChanged}, Look: func(context.Context) (found []incident.Condition, _ error) {
		for _, k := range status() {
			what := "Kafka is away, the ledger feeds the workers"
			switch {
			case k.Name != "" && k.Used:
				what = fmt.Sprintf("the Kafka cluster %s is away, the ledger feeds its lanes", k.Name)
			case k.Name != "":
				what = fmt.Sprintf("the Kafka cluster %s, which no lane uses, is away", k.Name)
			}
			if k.Away != nil {
				found = append(found, incident.Condition{
					Kind: incident.KafkaAway, Subject: k.Name, Oldest: k.For, Summary: fmt.Sprintf("%s: %v", what, k.Away),
				})
			}
			if age := now().Sub(k.ChangedAt); k.Changed != "" && age < noteFor {
				found = append(found, incident.Condition{Kind: incident.ClusterChanged, Subject: k.Name, Oldest: age.Truncate(time.Minute), Summary: k.Changed})
			}
		}
		return found, nil
	}}
}

// Evacuated tells of lanes that were moved to another Kafka cluster by
// themselves, until a person moves them: back, or there for good.
func Evacuated(placed func(context.Context) (map[message.Lane]message.Placement, error)) Check {
	return Check{Kinds: []incident.Kind{incident.Evacuated}, Look: func(ctx context.Context) ([]incident.Condition, error) {
		lanes, err := placed(ctx)
		if err != nil {
			return nil, err
		}
		n, to := 0, ""
		for _, at := range lanes {
			if at.Automatic {
				n, to = n+1, at.Cluster
			}
		}
		if n == 0 {
			return nil, nil
		}
		return []incident.Condition{{
			Kind:    incident.Evacuated,
			Summary: fmt.Sprintf("their Kafka cluster was judged gone, and lanes were moved to %s: %d; moving them back is up to you", to, n),
		}}, nil
	}}
}

// Doubts checks that no attempt is in doubt.
func Doubts(open func(context.Context) (message.DoubtsOpen, error)) Check {
	return Check{Kinds: []incident.Kind{incident.InDoubt}, Look: func(ctx context.Context) ([]incident.Condition, error) {
		d, err := open(ctx)
		if err != nil || d.Count == 0 {
			return nil, err
		}
		return []incident.Condition{{
			Kind: incident.InDoubt, Count: d.Count, Oldest: d.Oldest,
			Summary: fmt.Sprintf("nobody knows whether the provider took them, and a decision is awaited: messages in doubt: %d", d.Count),
		}}, nil
	}}
}

// NoWorker checks that some process delivers. One that only starts has a while
// for its first heartbeat.
func NoWorker(alive func(context.Context) (int, error), now func() time.Time) Check {
	const grace = 5 * time.Second
	began := now()
	last := began // when one was seen alive
	return Check{Kinds: []incident.Kind{incident.NoWorker}, Look: func(ctx context.Context) ([]incident.Condition, error) {
		n, err := alive(ctx)
		if err != nil {
			began = now() // after an outage heartbeats come first
			return nil, err
		}
		if n > 0 {
			last = now()
		}
		if n > 0 || now().Sub(began) < grace {
			return nil, nil
		}
		return []incident.Condition{{
			Kind: incident.NoWorker, Oldest: now().Sub(last), Summary: "no process delivers: no worker's heartbeat comes",
		}}, nil
	}}
}
