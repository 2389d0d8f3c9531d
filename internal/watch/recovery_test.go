package watch

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// A journal is reported only while it has something and nothing comes out.
func TestJournal(t *testing.T) {
	now := time.Unix(1000, 0)
	left, done := map[message.Class]int64{}, map[message.Class]int64{}
	c := Journal(func(context.Context) (map[message.Class]int64, map[message.Class]int64, error) {
		return left, done, nil
	},
		func() time.Time { return now })
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
	left[message.Trigger] = 0
	if got := look(time.Hour); got != "" {
		t.Errorf("drained: %s", got)
	}
}

func TestNumbering(t *testing.T) {
	var open []message.Fault
	c := Numbering(func() []message.Fault { return open })
	if found, err := c.Look(t.Context()); len(found) != 0 || err != nil {
		t.Errorf("sound: %v, %v", found, err)
	}
	open = []message.Fault{{Name: "counter of stream 17 is missing"}, {Name: "sequence position is missing"}}
	if found, err := c.Look(t.Context()); len(found) != 1 || err != nil || !strings.Contains(found[0].Summary, "counter of stream 17 is missing (2 faults)") {
		t.Errorf("broken: %v, %v", found, err)
	}
}
