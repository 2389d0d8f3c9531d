package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/stormpost/stormpost/internal/drill"
)

// A drill that broke a promise ends with 1, one whose harm left no trace with 2,
// and only one that did harm and broke nothing with 0.
func TestDrillVerdict(t *testing.T) {
	for _, c := range []struct {
		res  drill.Result
		want int
	}{
		{drill.Result{Pass: true, Bit: true}, 0},
		{drill.Result{Pass: true}, 2},
		{drill.Result{}, 2},
		{drill.Result{Bit: true}, 1},
		{drill.Result{Bit: true, Broken: []string{"lost: one"}}, 1},
		{drill.Result{Broken: []string{"lost: one"}}, 1},
	} {
		err, got := verdictOf(&c.res), 0
		if exit := (*exitError)(nil); errors.As(err, &exit) {
			got = exit.code
		} else if err != nil {
			got = 1
		}
		if got != c.want {
			t.Errorf("%+v: exit code %d (%v), want %d", c.res, got, err, c.want)
		}
	}
}

// With --json the verdict is one object with all that is promised of it.
func TestDrillJSON(t *testing.T) {
	var out bytes.Buffer
	c := &command{json: true}
	c.Out = &out
	if err := c.printDrill(&drill.Result{Drill: "torture", Evidence: map[string]any{}, Broken: []string{}, Timeline: []drill.Tick{}}); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	dec := json.NewDecoder(&out)
	if err := dec.Decode(&got); err != nil || dec.More() {
		t.Fatalf("%v, more: %v", err, dec.More())
	}
	for _, name := range []string{
		"drill", "seed", "pass", "accepted", "sent", "in_doubt", "expired", "superseded", "lost", "doubled", "gaps", "refused_503",
		"notice_s", "recover_s", "evidence", "timeline",
	} {
		if _, ok := got[name]; !ok {
			t.Errorf("it doesn't tell %s", name)
		}
	}
}
