package drill

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A short rolled-back-ledger on a PostgreSQL of its own: nothing sent twice,
// nothing lost, each number once.
func TestRolledBackLedger(t *testing.T) {
	brokers := os.Getenv("STORMPOST_TEST_KAFKA")
	if testing.Short() || os.Getenv("STORMPOST_TEST_SCALE") == "" || brokers == "" {
		t.Skip("real processes: with STORMPOST_TEST_SCALE and STORMPOST_TEST_KAFKA")
	}
	binary := filepath.Join(t.TempDir(), "stormpost")
	if out, err := exec.Command("go", "build", "-o", binary, "github.com/stormpost/stormpost/cmd/stormpost").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	var progress bytes.Buffer
	r, err := Run(ctx, rolledBackLedger, Options{Binary: binary, Seed: 1, Messages: 1000, Rate: 40, Brokers: strings.Split(brokers, ","), Progress: &progress})
	if err != nil {
		t.Fatalf("%v\n%s", err, &progress)
	}
	t.Logf("accepted %d, sent %d, in doubt %d, lost %d, doubled %d, gaps %d, evidence %v", r.Accepted, r.Sent, r.InDoubt, r.Lost, r.Doubled, r.Gaps, r.Evidence)
	if !r.Bit || r.Lost+r.Doubled+r.Gaps+r.Stale > 0 || r.Accepted < 1000 || r.Refused503 > 0 {
		t.Errorf("bit %v, accepted %d, broken %v\n%s", r.Bit, r.Accepted, r.Broken, &progress)
	}
}
