package incident

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// startAlertmanager runs a real Alertmanager for the test.
func startAlertmanager(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("runs Alertmanager")
	}
	program := ""
	for _, name := range []string{"prometheus-alertmanager", "alertmanager"} {
		if found, err := exec.LookPath(name); err == nil {
			program = found
			break
		}
	}
	if program == "" {
		t.Fatal("Alertmanager is missing: make deps")
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "alertmanager.yml")
	if err := os.WriteFile(config, []byte("route: {receiver: nobody}\nreceivers: [{name: nobody}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	out, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(program, "--config.file="+config, "--storage.path="+dir, "--web.listen-address="+addr, "--cluster.listen-address=")
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if b, err := os.ReadFile(out.Name()); err == nil && t.Failed() {
			t.Logf("alertmanager:\n%s", b)
		}
	})
	base := "http://" + addr
	await(t, "Alertmanager is ready", func() bool {
		resp, err := http.Get(base + "/-/ready")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return base
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// TestRealAlertmanager: an incident is one active alert there, however often and
// by whomever it is told, and none when it is over.
func TestRealAlertmanager(t *testing.T) {
	base := startAlertmanager(t)
	active := func() (found []alert) {
		resp, err := http.Get(base + "/api/v2/alerts?active=true")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(&found); err != nil {
			t.Fatal(err)
		}
		return found
	}
	// Its clock is the real one: these conditions are as old as they say.
	b := newBench("")
	b.now = time.Now().Add(-time.Minute)
	sink, err := NewAlertmanager(base)
	if err != nil {
		t.Fatal(err)
	}
	dispatch(t, DispatchConfig{Engine: b.Engine, Sinks: []Sink{sink}})
	b.pass(4*time.Second, stall)
	await(t, "the alert is active", func() bool { return len(active()) == 1 })
	a := active()[0]
	if a.Labels["cause"] != "stall/transactional.email" || a.Labels["severity"] != "critical" || a.Annotations["summary"] != "nothing moves" ||
		a.EndsAt.Before(time.Now().Add(3*time.Minute)) {
		t.Errorf("%+v", a)
	}
	more := stall
	more.Count = 4000
	b.pass(time.Second, more)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := sink.Repeat(ctx, b.Open()); err != nil {
		t.Fatal(err)
	}
	await(t, "its facts are new", func() bool { return active()[0].Annotations["count"] == "4000" })
	if n := len(active()); n != 1 {
		t.Errorf("%d alerts of one incident", n)
	}
	b.pass(20 * time.Second)
	await(t, "the alert is over", func() bool { return len(active()) == 0 })
}
