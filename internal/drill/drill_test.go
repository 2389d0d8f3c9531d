package drill

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// A short corrupt-cluster on a real cluster of three nodes: nothing lost,
// nothing doubled, no gaps.
func TestCorruptCluster(t *testing.T) {
	if testing.Short() || os.Getenv("STORMPOST_TEST_SCALE") == "" {
		t.Skip("real processes on a cluster of three: with STORMPOST_TEST_SCALE, as make test sets it")
	}
	binary := filepath.Join(t.TempDir(), "stormpost")
	if out, err := exec.Command("go", "build", "-o", binary, "github.com/stormpost/stormpost/cmd/stormpost").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	var progress bytes.Buffer
	r, err := Run(ctx, corruptCluster, Options{Binary: binary, Seed: 1, Messages: 1500, Rate: 60, DSN: os.Getenv("STORMPOST_TEST_DSN"), Progress: &progress})
	if err != nil {
		t.Fatalf("%v\n%s", err, &progress)
	}
	t.Logf("accepted %d, sent %d, in doubt %d, lost %d, doubled %d, gaps %d, evidence %v", r.Accepted, r.Sent, r.InDoubt, r.Lost, r.Doubled, r.Gaps, r.Evidence)
	// How fast it is is for a machine of its own to say.
	if !r.Bit || r.Lost+r.Doubled+r.Gaps+r.Stale > 0 || r.Accepted < 1500 || r.Refused503 > 0 {
		t.Errorf("bit %v, accepted %d, broken %v\n%s", r.Bit, r.Accepted, r.Broken, &progress)
	}
}

func TestOptions(t *testing.T) {
	good := Options{Messages: 1000, Rate: 100}
	if err := good.Validate(corruptCluster); err != nil {
		t.Error(err)
	}
	for name, o := range map[string]Options{
		"no messages":   {Rate: 100},
		"negative rate": {Messages: 1000, Rate: -1},
		"Kafka given":   {Messages: 1000, Rate: 100, Brokers: []string{"127.0.0.1:1"}},
		"stores to use": {Messages: 1000, Rate: 100, DSN: "postgres://x/y", Brokers: []string{"127.0.0.1:1"}},
	} {
		if o.Validate(frontDoor) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := Find("nothing"); err == nil {
		t.Error("an unknown drill was found")
	}
}

// A backlog of 3,000 is drained at 400/s while the drill did 500/s at best.
func TestDrainRates(t *testing.T) {
	var ticks []Tick
	sent := 0
	for i := range 60 {
		backlog := 0
		switch {
		case i < 20:
			sent += 500
		case i < 30: // nothing is sent
			backlog = 300 * (i - 19)
		default:
			sent += 400
			backlog = max(0, 3000-300*(i-29))
		}
		ticks = append(ticks, Tick{T: float64(i), Sent: sent, Backlog: backlog}, Tick{T: float64(i), Event: "x"})
	}
	if top, mean, most := drainRates(ticks, 25, 100); top != 500 || mean != 400 || most != 3000 {
		t.Errorf("top %v, mean %v, backlog %d", top, mean, most)
	}
}
