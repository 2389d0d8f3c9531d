package watch

import (
	"context"
	"fmt"
	"time"

	"github.com/stormpost/stormpost/internal/incident"
	"github.com/stormpost/stormpost/internal/message"
)

// Numbering tells of the guard's open faults. It asks no store.
func Numbering(open func() []message.Fault) Check {
	return Check{Kinds: []incident.Kind{incident.Numbering}, Look: func(context.Context) ([]incident.Condition, error) {
		faults := open()
		if len(faults) == 0 {
			return nil, nil
		}
		return []incident.Condition{{
			Kind: incident.Numbering, Summary: fmt.Sprintf("messages can't be numbered: %s (%d faults)", faults[0], len(faults)),
		}}, nil
	}}
}

// stuckAfter is how long nothing may come out of a journal that has something.
const stuckAfter = 4 * time.Second

// Journal tells of journals that something is in and nothing comes out of.
// backlog says how many submissions each class's still has, and how many it
// ever gave.
func Journal(backlog func(context.Context) (left, done map[message.Class]int64, err error), now func() time.Time) Check {
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
		var found []incident.Condition
		for c := message.Transactional; c <= message.Campaign; c++ {
			m := marks[c]
			if left[c] == 0 || done[c] != m.done || m.since.IsZero() {
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
