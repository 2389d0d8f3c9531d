package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/devstack/teststack"
)

// The stores are named by the environment here: starting real ones is
// package teststack's own test.
func runHere(t *testing.T, ctx context.Context, script string) (int, error) {
	t.Helper()
	t.Setenv("TMPDIR", t.TempDir()) // run changes it
	t.Setenv(teststack.DSNVariable, "postgres://somewhere/x")
	t.Setenv(teststack.KafkaVariable, "a:1")
	return run(ctx, true, []string{"sh", "-c", script})
}

func TestRunGivesStoresAndCodeAndCleansUp(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	t.Setenv("OUT", out)
	code, err := runHere(t, t.Context(), `touch "$TMPDIR/left"; echo "$TMPDIR $STORMPOST_TEST_DSN $STORMPOST_TEST_KAFKA" >"$OUT"; exit 7`)
	if code != 7 || err != nil {
		t.Fatalf("exit code %d, %v; want the command's 7", code, err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Fields(string(b))
	if len(got) != 3 || got[1] != "postgres://somewhere/x" || got[2] != "a:1" {
		t.Fatalf("the command saw %q", b)
	}
	if _, err := os.Stat(got[0]); !os.IsNotExist(err) {
		t.Errorf("the temporary folder %s is left: %v", got[0], err)
	}
}

func TestRunInterruptsTheWholeGroup(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ready := filepath.Join(t.TempDir(), "ready")
	t.Setenv("READY", ready)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(ready); err == nil {
				cancel()
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	begin := time.Now()
	code, err := runHere(t, ctx, `sleep 60 & touch "$READY"; wait`)
	if code == 0 || err == nil {
		t.Errorf("an interrupted run is exit code %d, %v", code, err)
	}
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("the command ran on for %v", took)
	}
}

func TestRunFailsWithoutTheCommand(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv(teststack.DSNVariable, "postgres://somewhere/x")
	t.Setenv(teststack.KafkaVariable, "a:1")
	if _, err := run(t.Context(), true, []string{"/no/such/command"}); err == nil {
		t.Error("a missing command is no error")
	}
}
