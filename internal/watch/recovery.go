package watch

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/stormpost/stormpost/internal/incident"
	"github.com/stormpost/stormpost/internal/message"
)

// Numbering tells of the guard's faults: open ones, and those that were a moment
// ago. It asks no store.
func Numbering(lately func() (faults []message.Fault, open int)) Check {
	return Check{Kinds: []incident.Kind{incident.Numbering}, Look: func(context.Context) ([]incident.Condition, error) {
		faults, open := lately()
		what := "messages can't be numbered"
		switch {
		case len(faults) == 0:
			return nil, nil
		case open == 0:
			what = "messages couldn't be numbered for a moment, and can again"
		}
		return []incident.Condition{{Kind: incident.Numbering, Summary: fmt.Sprintf("%s: %s (%d faults)", what, faults[0], len(faults))}}, nil
	}}
}

// RolledBack tells that the ledger was rolled back and is not reconciled. It
// asks no store.
func RolledBack(state func() (cause string, since time.Time), now func() time.Time) Check {
	return Check{Kinds: []incident.Kind{incident.RolledBack}, Look: func(context.Context) ([]incident.Condition, error) {
		cause, since := state()
		if cause == "" {
			return nil, nil
		}
		return []incident.Condition{{
			Kind: incident.RolledBack, Oldest: now().Sub(since),
			Summary: "the ledger was rolled back, so nothing is sent until it is reconciled: " + cause,
		}}, nil
	}}
}

// replayStuckAfter is how long a replay may not come on: longer than another
// process takes to go on after one that was killed, and than a step at the
// slowest rate.
const replayStuckAfter = 30 * time.Second

// Replays tells of replays that don't come on. stuck is those that are neither
// paused nor through, and that no step has moved for so long.
func Replays(stuck func(ctx context.Context, after time.Duration) ([]message.Replay, error)) Check {
	return Check{Kinds: []incident.Kind{incident.ReplayStuck}, Look: func(ctx context.Context) ([]incident.Condition, error) {
		all, err := stuck(ctx, replayStuckAfter)
		if err != nil {
			return nil, err
		}
		var found []incident.Condition
		for _, r := range all {
			found = append(found, incident.Condition{
				Kind: incident.ReplayStuck, Subject: strconv.FormatInt(r.ID, 10),
				Summary: fmt.Sprintf("replay %d has not come on for %s, with %d of %d messages given", r.ID, replayStuckAfter, r.Given, r.Total),
			})
		}
		return found, nil
	}}
}

// Held tells of what waits for a person: messages that are set aside by themselves, and
// what a journal accepted and the ledger refuses.
func Held(open func(context.Context) ([]message.HeldOpen, error)) Check {
	summaries := map[string]string{
		message.HeldConflict: "another request came first under their keys, so they are held until a person releases or cancels them: messages: %d",
		message.HeldPoison:   "they can't be handed over as they are, and are held until a person releases or cancels them: messages: %d",
		message.HeldParked:   "they were accepted into Kafka's journal, the ledger refuses them, and a person is to look why: submissions: %d",
	}
	return Check{Kinds: []incident.Kind{incident.Held}, Costs: true, Look: func(ctx context.Context) (found []incident.Condition, _ error) {
		all, err := open(ctx)
		for _, h := range all {
			c := incident.Condition{Kind: incident.Held, Subject: h.Cause, Count: h.Count, Oldest: h.Oldest, Summary: fmt.Sprintf(summaries[h.Cause], h.Count)}
			if h.Cause == message.HeldParked {
				c.Command = `psql "$STORMPOST_DSN" -c 'select id, at, ids, reason from refused where not entered'`
			}
			found = append(found, c)
		}
		return found, err
	}}
}

// stuckAfter is how long nothing may come out of a journal that has something.
const stuckAfter = 4 * time.Second

// Journal tells of journals that something is in and nothing comes out of, although
// the ledger could take it: while stands says that it can't, that is an incident of
// its own, and this would be its second. backlog says how many submissions each
// class's still has, and how many it ever gave.
func Journal(backlog func(context.Context) (left, done map[message.Class]int64, err error), stands func(context.Context) bool, now func() time.Time) Check {
	type mark struct {
		done  int64
		since time.Time // when done was first seen, or the journal last empty
	}
	marks := make(map[message.Class]mark)
	return Check{Kinds: []incident.Kind{incident.JournalNotDraining}, Look: func(ctx context.Context) ([]incident.Condition, error) {
		left, done, err := backlog(ctx)
		if err != nil {
			return nil, err
		}
		waits := false
		for _, n := range left {
			waits = waits || n > 0
		}
		if waits && !stands(ctx) {
			clear(marks)
			return nil, nil
		}
		var found []incident.Condition
		moving := false // a more urgent class's backlog: the others wait for it
		for c := message.Transactional; c <= message.Campaign; c++ {
			m := marks[c]
			if left[c] == 0 || done[c] != m.done || m.since.IsZero() || moving {
				moving = moving || !m.since.IsZero() && done[c] != m.done && left[c] > done[c]-m.done
				marks[c] = mark{done[c], now()}
				continue
			}
			if stuck := now().Sub(m.since); stuck >= stuckAfter {
				found = append(found, incident.Condition{
					Kind: incident.JournalNotDraining, Subject: c.String(),
					Summary: fmt.Sprintf("%d %s submissions are accepted in Kafka's journal, and none was entered into the ledger for %s",
						left[c], c, stuck.Round(time.Second)),
				})
			}
		}
		return found, nil
	}}
}
