package app

import (
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// Lanes wait for a cluster that is away for the whole time, whether it went or
// they came; and whoever comes back in between begins anew.
func TestVigil(t *testing.T) {
	const after = 10 * time.Second
	at := map[message.Lane]string{}
	v := newVigil(after)
	now := time.Now()
	look := func(when time.Duration, mainAway bool, want int) {
		t.Helper()
		got := v.look(now.Add(when), func(l message.Lane) string { return at[l] }, map[string]bool{"main": mainAway, "b": false})
		if len(got["main"]) != want || len(got["b"]) != 0 {
			t.Errorf("after %s: %v, want %d lanes of main", when, got, want)
		}
	}
	place := func(cluster string, lanes ...message.Lane) {
		for _, l := range lanes {
			at[l] = cluster
		}
	}
	all := message.Lanes()
	place("main", all...)
	look(0, true, 0)
	look(after-1, true, 0)
	look(after, true, len(all))
	look(after+1, false, 0)
	look(after+2, true, 0)
	look(2*after+2, true, len(all))
	place("b", all...)
	look(2*after+3, true, 0)
	// A person moves one back, a moment before it is seen that the cluster is back.
	place("main", all[0])
	look(5*after, true, 0)
	look(6*after-1, true, 0)
	look(6*after, true, 1)
}
