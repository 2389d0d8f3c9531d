package drill

import (
	"bytes"
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// hurried is what a drill says of how fast things went: that is for a machine of
// its own to say.
var hurried = []string{"was not noticed within", "99th percentile", "first delivery in class", "was drained", "no push was taken for", "named the credential within", "no process told"}

// short runs a drill with few messages: its harm bites, and but for how fast it
// went no promise is broken.
func short(t *testing.T, d Drill, opt Options) *Result {
	t.Helper()
	opt.Binary, opt.Seed = built(t, ""), 1
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	var progress bytes.Buffer
	opt.Progress = &progress
	r, err := Run(ctx, d, opt)
	if err != nil {
		t.Fatalf("%v\n%s", err, &progress)
	}
	t.Logf("accepted %d, sent %d, in doubt %d, expired %d, lost %d, doubled %d, gaps %d, evidence %v", r.Accepted, r.Sent, r.InDoubt, r.Expired, r.Lost, r.Doubled, r.Gaps, r.Evidence)
	broken := slices.DeleteFunc(slices.Clone(r.Broken), func(b string) bool {
		return slices.ContainsFunc(hurried, func(h string) bool { return strings.Contains(b, h) })
	})
	if !r.Bit || len(broken) > 0 || r.Accepted < opt.Messages {
		t.Errorf("bit %v, accepted %d, broken %v\n%s", r.Bit, r.Accepted, r.Broken, &progress)
	}
	return r
}

// judgedHarms fails unless so many harms bit, and were judged by whether they were noticed.
func judgedHarms(t *testing.T, r *Result, want int) {
	t.Helper()
	if told, _ := r.Evidence["noticed"].([]map[string]any); len(told) != want {
		t.Errorf("%d harms were judged, want %d: %v", len(told), want, told)
	}
}

// given are the stores that the tests have.
func given(t *testing.T) (dsn string, brokers []string) {
	t.Helper()
	if dsn = os.Getenv("STORMPOST_TEST_DSN"); dsn == "" || os.Getenv("STORMPOST_TEST_KAFKA") == "" {
		t.Skip("with STORMPOST_TEST_DSN and STORMPOST_TEST_KAFKA, as make test sets them")
	}
	return dsn, strings.Split(os.Getenv("STORMPOST_TEST_KAFKA"), ",")
}

func TestCorruptCluster(t *testing.T) {
	dsn, _ := given(t)
	r := short(t, corruptCluster, Options{Messages: 1500, Rate: 60, DSN: dsn})
	if r.Refused503 > 0 || r.InDoubt > 0 {
		t.Errorf("refused in %d seconds, %d in doubt", r.Refused503, r.InDoubt)
	}
	judgedHarms(t, r, 2)
}

func TestRolledBackLedger(t *testing.T) {
	_, brokers := given(t)
	r := short(t, rolledBackLedger, Options{Messages: 1000, Rate: 40, Brokers: brokers})
	if r.Refused503 > 0 {
		t.Errorf("refused in %d seconds", r.Refused503)
	}
	judgedHarms(t, r, 1)
}

func TestLostNumbering(t *testing.T) {
	dsn, brokers := given(t)
	judgedHarms(t, short(t, lostNumbering, Options{Messages: 1500, Rate: 40, DSN: dsn, Brokers: brokers}), 6) // three in turn, and three together
}

func TestFrontDoor(t *testing.T) {
	given(t)
	r := short(t, frontDoor, Options{Messages: 1500, Rate: 40})
	if r.InDoubt > 0 {
		t.Errorf("%d in doubt", r.InDoubt)
	}
	judgedHarms(t, r, 5) // of the last outage both stores'
}

func TestExpiredToken(t *testing.T) {
	dsn, brokers := given(t)
	short(t, expiredToken, Options{Messages: 1500, Rate: 40, DSN: dsn, Brokers: brokers})
}
