//go:build planted

package drill

import (
	"cmp"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/plant"
)

// at is a fault that a planted bug needs.
func at(seconds, span float64, target, kind, how string) fault {
	second := float64(time.Second)
	return fault{At: time.Duration(seconds * second), Span: time.Duration(span * second), Target: target, Kind: kind, How: how, Node: -1, Share: 1}
}

// killed has any fault, where a bug needs none.
var killed = []fault{at(12, 1, "api-1", "kill", "")}

func withShare(share float64, faults ...fault) []fault {
	for i := range faults {
		faults[i].Share = share
	}
	return faults
}

// planted are the bugs, the faults without which each of them stays hidden, and
// the first word of what the verdict must say.
var planted = []struct {
	bug     plant.Bug
	faults  []fault
	want    string
	rate    int
	noKafka bool // the processes find none
}{
	{bug: plant.SkipAttempt, faults: killed, want: "doubled"},
	{bug: plant.FinishEarly, want: "lost", faults: []fault{
		at(4, 14, "postgres", "network", string(refusing)), at(14, 1, "recovery", "kill", ""),
	}},
	{bug: plant.RetryUnknown, want: "doubled", faults: withShare(0.3,
		at(4, 16, "smtp", "lose", "takes and drops"), at(4, 16, "fcm", "lose", "takes and drops"))},
	{bug: plant.EarlyAnswer, want: "lost", faults: []fault{at(6, 12, "postgres", "network", string(refusing))}},
	{bug: plant.CountNumbers, want: "gap", rate: 25, faults: []fault{{At: time.Second, Span: 25 * time.Second, Target: "postgres", Kind: "network", How: string(lagging), Lag: 100 * time.Millisecond}}},
	{bug: plant.ForgetWaiting, want: "lost", faults: withShare(0.5,
		at(4, 10, "smtp", "refuse", "refuses"), at(4, 10, "fcm", "refuse", "refuses"))},
	{bug: plant.IgnoreExpiry, want: "stale", faults: []fault{
		at(1, 27, "smtp", "refuse", "refuses"), at(1, 27, "fcm", "refuse", "refuses"),
	}},
	{bug: plant.ProcessKeys, faults: killed, want: "doubled"},
	{bug: plant.ResendSilent, want: "doubled", faults: []fault{
		at(4, 5, "smtp", "lose", "takes and hangs"), at(4, 5, "fcm", "lose", "takes and hangs"),
		at(7, 1, "worker-1", "kill", ""), at(7, 1, "worker-2", "kill", ""),
	}},
	{bug: plant.NoCursor, faults: killed, want: "lost", noKafka: true},
	{bug: plant.NeedlessDoubt, faults: killed, want: "unfounded"},
}

// The judge is judged: it calls each planted bug by its kind, within two minutes
// of load and verdict, and a program without one passes under all of these faults.
func TestPlanted(t *testing.T) {
	binary := built(t, "planted")
	dsn := os.Getenv("STORMPOST_TEST_DSN")
	for _, c := range planted {
		t.Run(string(c.bug), func(t *testing.T) {
			opt := Options{Binary: binary, Seed: 1, Rate: cmp.Or(c.rate, 10), Minutes: 0.5, DSN: dsn, Env: []string{"PLANTED_BUG=" + string(c.bug)}, plan: c.faults}
			if opt.Messages = 30 * opt.Rate; c.noKafka {
				opt.Env = append(opt.Env, "STORMPOST_BROKERS=127.0.0.1:1")
			}
			r, progress := tortured(t, opt)
			called := slices.ContainsFunc(r.Broken, func(b string) bool { return strings.HasPrefix(b, c.want+":") })
			if r.Pass || !called {
				t.Errorf("not called: want %s, broken:\n%s\n%s", c.want, strings.Join(r.Broken, "\n"), progress)
			}
			took := r.Timeline[len(r.Timeline)-1].T
			if took > 120 {
				t.Errorf("it took %.0f s", took)
			}
			t.Logf("called after %.0f s: %s", took, strings.Join(r.Broken, "; "))
		})
	}
	t.Run("none", func(t *testing.T) {
		// The faults of all, one after the other where they have the same target.
		var faults []fault
		until := map[string]time.Duration{}
		for _, c := range planted {
			for _, f := range c.faults {
				f.At, f.Span = max(f.At, until[f.Target]), min(f.Span, 6*time.Second)
				until[f.Target] = f.At + f.Span + time.Second
				faults = append(faults, f)
			}
		}
		r, progress := tortured(t, Options{Binary: binary, Seed: 1, Rate: 10, Messages: 500, Minutes: 50.0 / 60, DSN: dsn, plan: faults})
		if !r.Pass {
			t.Errorf("bit %v, broken:\n%s\n%s", r.Bit, strings.Join(r.Broken, "\n"), progress)
		}
	})
}
