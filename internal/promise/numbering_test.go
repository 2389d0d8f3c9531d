//go:build linux

package promise

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

func (s *stage) text(url string) (int, string) {
	s.t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// command runs the program, and returns what it printed and its exit code.
func (s *stage) command(args ...string) (stdout, stderr string, code int) {
	s.t.Helper()
	path, err := binary()
	if err != nil {
		s.t.Fatal(err)
	}
	var out, errs strings.Builder
	cmd := exec.CommandContext(s.t.Context(), path, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), s.env...), &out, &errs
	_ = cmd.Run()
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// Numbering is lost while an API process runs: it says so, is not ready, and no
// request gets a 202; so say preflight and migrate --check. A process with the
// role recovery repairs it within 10 s, with nothing else told to anybody.
func TestLostNumberingComesBack(t *testing.T) {
	s := newStage(t)
	p := s.start("api")
	c := newClient(t, s.key, func() string { return p.api })
	post := func(name string) answer {
		t.Helper()
		a, err := c.post(t.Context(), p.api, order{Name: name}, name)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if a := post("before"); a.status != http.StatusAccepted {
		t.Fatalf("status %d", a.status)
	}
	broken := regexp.MustCompile(`(?m)^stormpost_numbering_broken\{?.*\}? ([0-9]+)$`)
	await := func(within time.Duration, status int, gauge string) string {
		t.Helper()
		for deadline := time.Now().Add(within); ; time.Sleep(100 * time.Millisecond) {
			code, body := s.text(p.api + "/readyz")
			_, metrics := s.text(p.metrics + "/metrics")
			m := broken.FindStringSubmatch(metrics)
			if code == status && m != nil && m[1] == gauge {
				return body
			}
			if time.Now().After(deadline) {
				t.Fatalf("after %v: /readyz says %d %s, the metric %v", within, code, body, m)
			}
		}
	}
	await(10*time.Second, http.StatusOK, "0")
	if out, stderr, code := s.command("preflight"); code != 0 {
		t.Fatalf("preflight: exit code %d: %s %s", code, out, stderr)
	}
	if out, stderr, code := s.command("migrate", "--check"); code != 0 || !strings.Contains(out, "0005_guard.sql") {
		t.Fatalf("migrate --check: exit code %d: %s %s", code, out, stderr)
	}

	if _, err := s.conn().Exec(t.Context(), `drop sequence position`); err != nil {
		t.Fatal(err)
	}
	if body := await(10*time.Second, http.StatusServiceUnavailable, "1"); !strings.Contains(body, "sequence position is missing") {
		t.Errorf("/readyz does not name it: %s", body)
	}
	if a := post("meanwhile"); a.status != http.StatusServiceUnavailable {
		t.Errorf("status %d without a sequence", a.status)
	}
	out, _, code := s.command("preflight", "--json")
	var result struct {
		OK     bool
		Checks []struct {
			Name     string
			Findings []string
		}
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil || code != 1 || result.OK || !strings.Contains(out, "sequence position is missing") || len(result.Checks) != 5 {
		t.Errorf("preflight: exit code %d: %s (%v)", code, out, err)
	}
	if _, stderr, code := s.command("migrate", "--check"); code != 1 || !strings.Contains(stderr, "sequence position is missing") {
		t.Errorf("migrate --check: exit code %d: %s", code, stderr)
	}

	start := time.Now()
	s.start("recovery")
	await(10*time.Second-time.Since(start), http.StatusOK, "0")
	if a := post("meanwhile"); a.status != http.StatusAccepted || a.Messages[0].Sequence != 2 {
		t.Errorf("afterwards: %+v", a)
	}
}

// preflight names what it can't reach, and what isn't there.
func TestPreflightNamesWhatIsWrong(t *testing.T) {
	s := newStage(t)
	out, _, code := s.command("preflight")
	if code != 1 || !strings.Contains(out, "WRONG  kafka: topic "+s.prefix) || !strings.Contains(out, "ok     numbering") {
		t.Errorf("without topics: exit code %d: %s", code, out)
	}
	if _, err := s.conn().Exec(t.Context(), `
		do $$ begin execute format('alter database %I set synchronous_commit = off', current_database()); end $$;
		delete from goose_db_version where version_id >= 5`); err != nil {
		t.Fatal(err)
	}
	out, _, code = s.command("preflight")
	if code != 1 || !strings.Contains(out, "WRONG  durability: synchronous_commit is off") || !strings.Contains(out, "WRONG  schema: 0005_guard.sql is not applied") {
		t.Errorf("unsafe: exit code %d: %s", code, out)
	}
	s.env = append(s.env, "STORMPOST_DSN=postgres://nobody@127.0.0.1:1/none", "STORMPOST_BROKERS=127.0.0.1:1")
	out, _, code = s.command("preflight")
	if code != 1 || !strings.Contains(out, "WRONG  ledger: ") || !strings.Contains(out, "WRONG  kafka: ") || strings.Contains(out, "numbering") {
		t.Errorf("without stores: exit code %d: %s", code, out)
	}
}
