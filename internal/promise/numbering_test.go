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

// Numbering is lost while an API process runs: its metric and incident, preflight
// and migrate --check say so, and accepting goes on into the journal. A process
// with the role recovery repairs it within 10 s, with nothing else told to
// anybody, and what was journaled gets its number.
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
	await := func(within time.Duration, gauge string) {
		t.Helper()
		for deadline := time.Now().Add(within); ; time.Sleep(100 * time.Millisecond) {
			code, body := s.text(p.api + "/readyz") // the journal can accept
			_, metrics := s.text(p.metrics + "/metrics")
			m := broken.FindStringSubmatch(metrics)
			if code == http.StatusOK && m != nil && m[1] == gauge {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("after %v: /readyz says %d %s, the metric %v", within, code, body, m)
			}
		}
	}
	await(10*time.Second, "0")
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) { // until the topics are made
		out, stderr, code := s.command("preflight")
		if code == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("preflight: exit code %d: %s %s", code, out, stderr)
		}
	}
	if out, stderr, code := s.command("migrate", "--check"); code != 0 || !strings.Contains(out, "0007_guard.sql") {
		t.Fatalf("migrate --check: exit code %d: %s %s", code, out, stderr)
	}

	if _, err := s.conn().Exec(t.Context(), `drop sequence position`); err != nil {
		t.Fatal(err)
	}
	await(10*time.Second, "1")
	if a := post("meanwhile"); a.status != http.StatusAccepted || a.Messages[0].State != "journaled" {
		t.Errorf("without a sequence: %+v", a)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		var incidents json.RawMessage
		s.get(p.api+"/v1/incidents", &incidents)
		if strings.Contains(string(incidents), "sequence position is missing") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the incidents don't name it: %s", incidents)
		}
	}
	out, _, code := s.command("preflight", "--json")
	var result struct {
		OK     bool
		Checks []struct {
			Name     string
			Findings []string
		}
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil || code != 1 || result.OK || !strings.Contains(out, "sequence position is missing") || len(result.Checks) != 6 {
		t.Errorf("preflight: exit code %d: %s (%v)", code, out, err)
	}
	if _, stderr, code := s.command("migrate", "--check"); code != 1 || !strings.Contains(stderr, "sequence position is missing") {
		t.Errorf("migrate --check: exit code %d: %s", code, stderr)
	}

	start := time.Now()
	s.start("recovery")
	await(10*time.Second-time.Since(start), "0")
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		a := post("meanwhile")
		if a.status == http.StatusOK && a.Messages[0].Sequence == 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("afterwards: %+v", a)
		}
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
		delete from goose_db_version where version_id >= 7`); err != nil {
		t.Fatal(err)
	}
	out, _, code = s.command("preflight")
	if code != 1 || !strings.Contains(out, "WRONG  durability: synchronous_commit is off") || !strings.Contains(out, "WRONG  schema: 0007_guard.sql is not applied") {
		t.Errorf("unsafe: exit code %d: %s", code, out)
	}
	s.env = append(s.env, "STORMPOST_DSN=postgres://nobody@127.0.0.1:1/none", "STORMPOST_BROKERS=127.0.0.1:1")
	out, _, code = s.command("preflight")
	if code != 1 || !strings.Contains(out, "WRONG  ledger: ") || !strings.Contains(out, "WRONG  kafka: ") || strings.Contains(out, "numbering") {
		t.Errorf("without stores: exit code %d: %s", code, out)
	}
}
