package drill

import (
	"bytes"
	"context"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/devstack/teststack"
)

// built is the program, with build tags.
func built(t *testing.T, tags string) string {
	t.Helper()
	if testing.Short() || os.Getenv("STORMPOST_TEST_SCALE") == "" {
		t.Skip("real processes on real stores: with STORMPOST_TEST_SCALE, as make test sets it")
	}
	dir := t.TempDir()
	binary, err := teststack.Build(dir, tags)
	if err != nil {
		t.Fatal(err)
	}
	name, value, _ := strings.Cut(teststack.RaceEnv(dir), "=")
	t.Setenv(name, value)
	t.Cleanup(func() {
		if races := teststack.Races(dir); races != "" {
			t.Errorf("the processes race:\n%s", races)
		}
	})
	return binary
}

// quick are settings with which what is left after a fault is decided soon.
var quick = []string{
	"STORMPOST_DELIVERY_CLAIM_VALID=5s", "STORMPOST_DELIVERY_RETRY_MAX=3s",
	"STORMPOST_SMTP_REPLY_LIMIT=5s", "STORMPOST_FCM_REPLY_LIMIT=5s",
}

// tortured runs a short torture, and says how it went.
func tortured(t *testing.T, opt Options) (*Result, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	var progress bytes.Buffer
	opt.Progress, opt.Settle = &progress, 10*time.Second
	opt.Brokers = strings.Split(os.Getenv("STORMPOST_TEST_KAFKA"), ",")
	opt.Env = append(append([]string{}, quick...), opt.Env...)
	if opt.Messages == 0 {
		opt.Messages, opt.Rate, opt.Minutes = 300, 10, 0.5
	}
	r, err := Run(ctx, torture, opt)
	if err != nil {
		t.Fatalf("%v\n%s", err, &progress)
	}
	t.Logf("accepted %d, sent %d, in doubt %d, expired %d, superseded %d, lost %d, doubled %d, gaps %d, stale %d, evidence %v",
		r.Accepted, r.Sent, r.InDoubt, r.Expired, r.Superseded, r.Lost, r.Doubled, r.Gaps, r.Stale, r.Evidence)
	return r, progress.String()
}

// A short torture with whatever its seed draws, but for Kafka's own faults. The seeds
// once found a bug, and are no more than a likely way to find it again
// (docs/decisions/0021-failing-seeds.md).
func TestTorture(t *testing.T) {
	seeds := map[string]uint64{"superseded by an older one": 42}
	if teststack.Scale() == 1 { // each takes a minute to set up and settle
		seeds["the same amid a full disk, and a refusal of what had been accepted"] = 48
	}
	for bug, seed := range seeds {
		t.Run(bug, func(t *testing.T) {
			binary := built(t, "")
			seconds := max(20, teststack.Scaled(240))
			r, progress := tortured(t, Options{Binary: binary, Seed: seed, Minutes: float64(seconds) / 60, Rate: 20, Messages: 20 * seconds})
			if !r.Pass {
				t.Errorf("bit %v, broken:\n%s\n%s", r.Bit, strings.Join(r.Broken, "\n"), progress)
			}
		})
	}
}

// The same seed draws the same faults, another one others; each kind is drawn,
// none outlasts the time, and of one target no two overlap.
func TestDraw(t *testing.T) {
	able := ways{"postgres": {"postgres", "network", "disk"}, "kafka": {"kafka", "network"}, "smtp": {"slow", "refuse", "lose"}, "worker-1": {"kill", "stop"}, clockOf + "worker-1": {"clock"}}
	const span = 20 * time.Minute
	plan := draw(7, span, able)
	if !reflect.DeepEqual(plan, draw(7, span, able)) {
		t.Error("the same seed, other faults")
	}
	if reflect.DeepEqual(plan, draw(8, span, able)) {
		t.Error("another seed, the same faults")
	}
	kinds, until := map[string]int{}, map[string]time.Duration{}
	for _, f := range plan {
		kinds[f.Kind]++
		if f.At < until[f.Target] || f.At+f.Span > span {
			t.Errorf("%s at %s", f, f.At)
		}
		until[f.Target] = f.At + f.Span
	}
	for _, k := range faultKinds {
		if kinds[k] == 0 {
			t.Errorf("no fault of kind %s in %d", k, len(plan))
		}
	}
}
