package watch

import (
	"context"
	"fmt"
	"time"

	"github.com/stormpost/stormpost/internal/incident"
	"github.com/stormpost/stormpost/internal/message"
)

// LedgerAway checks that the ledger answers and can be written to.
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

// Kafka is what a process knows of Kafka.
type Kafka struct {
	Away      error         // nil while it answers
	For       time.Duration // how long it has been away
	Changed   string        // how it became another one than it was, last; empty: it didn't
	ChangedAt time.Time
}

// KafkaAway checks what status says. That Kafka was wiped, rolled back or
// replaced is told of for noteFor, since nothing has to be done about it.
func KafkaAway(status func() Kafka, now func() time.Time) Check {
	const noteFor = 5 * time.Minute
	return Check{Kinds: []incident.Kind{incident.KafkaAway, incident.ClusterChanged}, Look: func(context.Context) (found []incident.Condition, _ error) {
		k := status()
		if k.Away != nil {
			found = append(found, incident.Condition{
				Kind: incident.KafkaAway, Oldest: k.For, Summary: fmt.Sprintf("Kafka is away, the ledger feeds the workers: %v", k.Away),
			})
		}
		if age := now().Sub(k.ChangedAt); k.Changed != "" && age < noteFor {
			found = append(found, incident.Condition{Kind: incident.ClusterChanged, Oldest: age.Truncate(time.Minute), Summary: k.Changed})
		}
		return found, nil
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
