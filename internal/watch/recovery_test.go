package watch

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/incident"
	"github.com/stormpost/stormpost/internal/message"
)

// A journal is reported only while it has something and nothing comes out.
func TestJournal(t *testing.T) {
	now := time.Unix(1000, 0)
	left, done := map[message.Class]int64{}, map[message.Class]int64{}
	stands := true
	c := Journal(func(context.Context) (map[message.Class]int64, map[message.Class]int64, error) {
		return left, done, nil
	}, func(context.Context) bool { return stands }, func() time.Time { return now })
	look := func(after time.Duration) string {
		t.Helper()
		now = now.Add(after)
		found, err := c.Look(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, f := range found {
			all = append(all, f.Cause()+": "+f.Summary)
		}
		return strings.Join(all, "; ")
	}
	if got := look(0) + look(time.Hour); got != "" {
		t.Errorf("empty: %s", got)
	}
	left[message.Trigger] = 7
	if got := look(2 * time.Second); got != "" {
		t.Errorf("too early: %s", got)
	}
	if got := look(2 * time.Second); !strings.HasPrefix(got, "journal_not_draining/trigger: 7 trigger submissions") {
		t.Errorf("stuck: %q", got)
	}
	done[message.Trigger] = 1
	for range 5 { // it moves, however slowly
		if got := look(3 * time.Second); got != "" {
			t.Errorf("moving: %s", got)
		}
		done[message.Trigger]++
	}
	stands = false // another incident tells why nothing comes out
	if got := look(time.Hour) + look(2*time.Second); got != "" {
		t.Errorf("with the ledger away: %s", got)
	}
	stands = true
	if got := look(2*time.Second) + look(2*time.Second); got != "" {
		t.Errorf("the ledger is just back: %s", got)
	}
	if got := look(2 * time.Second); !strings.HasPrefix(got, "journal_not_draining/trigger: 7 trigger submissions") {
		t.Errorf("and still nothing comes out: %q", got)
	}
	left[message.Trigger] = 0
	if got := look(time.Hour); got != "" {
		t.Errorf("drained: %s", got)
	}
	left[message.Transactional], left[message.Trigger] = 900, 7
	for range 5 { // it waits its turn
		if got := look(3 * time.Second); got != "" {
			t.Errorf("behind a more urgent one: %s", got)
		}
		left[message.Transactional], done[message.Transactional] = left[message.Transactional]-100, done[message.Transactional]+100
	}
	left[message.Transactional] = 1 // it only comes and goes
	for range 2 {
		done[message.Transactional]++
		look(3 * time.Second)
	}
	if got := look(0); !strings.HasPrefix(got, "journal_not_draining/trigger: 7 trigger submissions") {
		t.Errorf("stuck behind nothing: %q", got)
	}
}

func TestRolledBack(t *testing.T) {
	cause := ""
	c := RolledBack(func() (string, time.Time) { return cause, time.Now().Add(-time.Minute) }, time.Now)
	if found, err := c.Look(t.Context()); err != nil || len(found) > 0 {
		t.Errorf("a ledger that stands: %v %v", found, err)
	}
	cause = "its log ends early"
	found, err := c.Look(t.Context())
	if err != nil || len(found) != 1 || found[0].Kind != incident.RolledBack || found[0].Oldest < time.Minute {
		t.Errorf("%+v %v", found, err)
	}
}

func TestNumbering(t *testing.T) {
	var faults []message.Fault
	var open int
	c := Numbering(func() ([]message.Fault, int) { return faults, open })
	if found, err := c.Look(t.Context()); len(found) != 0 || err != nil {
		t.Errorf("sound: %v, %v", found, err)
	}
	faults, open = []message.Fault{{Name: "counter of stream 17 is missing"}, {Name: "sequence position is missing"}}, 1
	if found, err := c.Look(t.Context()); len(found) != 1 || err != nil || !strings.Contains(found[0].Summary, "counter of stream 17 is missing (2 faults)") {
		t.Errorf("broken: %v, %v", found, err)
	}
	open = 0
	if found, err := c.Look(t.Context()); len(found) != 1 || err != nil || !strings.Contains(found[0].Summary, "for a moment") {
		t.Errorf("repaired: %v, %v", found, err)
	}
}

func TestReplays(t *testing.T) {
	var stuck []message.Replay
	c := Replays(func(_ context.Context, after time.Duration) ([]message.Replay, error) {
		if after != replayStuckAfter {
			t.Errorf("asked for %s", after)
		}
		return stuck, nil
	})
	if found, err := c.Look(t.Context()); len(found) != 0 || err != nil {
		t.Errorf("none: %v %v", found, err)
	}
	stuck = []message.Replay{{ID: 7, Given: 3, Total: 9}}
	found, err := c.Look(t.Context())
	if err != nil || len(found) != 1 || found[0].Cause() != "replay_stuck/7" || !strings.Contains(found[0].Summary, "3 of 9") {
		t.Errorf("stuck: %+v %v", found, err)
	}
}

// What waits for a person is one incident for each cause, and over when nothing waits.
func TestHeld(t *testing.T) {
	var open []message.HeldOpen
	within(t, func() []Check {
		return []Check{Held(func(context.Context) ([]message.HeldOpen, error) { return open, nil })}
	}, func(t *testing.T, e *incident.Engine) {
		nap(time.Minute)
		if n := len(e.Open()); n != 0 {
			t.Fatalf("%+v", e.Open())
		}
		open = []message.HeldOpen{{Cause: message.HeldConflict, Count: 2, Oldest: time.Hour}, {Cause: message.HeldParked, Count: 3}, {Cause: message.HeldPoison, Count: 4}}
		nap(4 * time.Second)
		all := causes(e)
		if i := all["held/key_conflict"]; i.Count != 2 || i.OldestAge != 3600 || i.Severity != incident.Warning || i.Command != "stormpost messages --state held" || !strings.Contains(i.Summary, "another request came first") {
			t.Errorf("%+v", i)
		}
		if i := all["held/parked"]; i.Count != 3 || !strings.HasPrefix(i.Command, "psql") || !strings.Contains(i.Summary, "the ledger refuses them") {
			t.Errorf("%+v", i)
		}
		if i := all["held/poison"]; i.Count != 4 || !strings.Contains(i.Summary, "can't be handed over") || len(all) != 3 {
			t.Errorf("%+v", all)
		}
		open = open[:1]
		nap(10 * time.Second)
		if all := causes(e); len(all) != 1 || all["held/key_conflict"].ID == "" {
			t.Errorf("%+v", all)
		}
	})
}
