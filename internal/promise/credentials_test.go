//go:build linux

package promise

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/sim"
)

// replaceFile renames a new file over path.
func replaceFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func tokenFile(t *testing.T, token string, issued, expires time.Time) string {
	t.Helper()
	b, err := json.Marshal(map[string]any{"access_token": token, "issued_at": issued, "expires_at": expires})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// readyz is the status and text of the metrics listener's.
func (p *process) readyz(t *testing.T) (int, string) {
	t.Helper()
	resp, err := http.Get(p.metrics + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func (p *process) becomesReady(t *testing.T) {
	t.Helper()
	for by := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		status, text := p.readyz(t)
		if status == http.StatusOK {
			return
		}
		if time.Now().After(by) {
			t.Fatalf("not ready: %s", text)
		}
	}
}

// A deploy delivers an expired token in place of the working one, under load. The
// running process goes on with the last good one, and says so in time; one that
// starts with the expired one never becomes ready, until it has a good one.
func TestExpiredTokenDisplacesNothing(t *testing.T) {
	s := newStage(t)
	account, err := os.ReadFile(s.sims.ServiceAccountFile)
	if err != nil {
		t.Fatal(err)
	}
	key := credential.New(credential.Config{Name: "key", Source: credential.Fixed("test", string(account))})
	defer key.Close()
	got, err := (&credential.JWTBearer{Key: key, Scope: sim.FCMScope}).Fetch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	good := got.Value.Reveal()
	now := time.Now()
	path := filepath.Join(t.TempDir(), "token")
	replaceFile(t, path, tokenFile(t, good, now, now.Add(time.Hour)))
	env := func(file string) []string {
		return []string{
			"STORMPOST_FCM_SERVICE_ACCOUNT=", "STORMPOST_FCM_TOKEN=file:" + file, "STORMPOST_FCM_PROJECT=" + s.sims.Token.Project(),
			"STORMPOST_SECRETS_ROOT=" + filepath.Dir(file),
		}
	}
	p := s.start("api,worker,watch", env(path)...)
	p.becomesReady(t)
	c := newClient(t, s.key, func() string { return p.api })
	stop := make(chan struct{})
	var load sync.WaitGroup
	load.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
				submitAll(t, c, 20, func(i int) order { return order{Name: fmt.Sprintf("push-%d-%d", n, i), Push: true} })
			}
		}
	})

	expired := tokenFile(t, "CANARY-expired", now.Add(-2*time.Hour), now.Add(-time.Hour))
	deployed := time.Now()
	replaceFile(t, path, expired)
	incident := s.opens(p.api, "credential/fcm", deployed.Add(noticed))
	if incident.Severity != "warning" || !strings.Contains(incident.Summary, "expired") || incident.Command != "stormpost credentials test fcm" {
		t.Errorf("%+v", incident)
	}
	if status, text := p.readyz(t); status != http.StatusOK {
		t.Errorf("the running process isn't ready any more: %s", text)
	}

	other := filepath.Join(t.TempDir(), "token")
	replaceFile(t, other, expired)
	fresh := s.start("worker", env(other)...)
	for by := time.Now().Add(5 * time.Second); time.Now().Before(by); time.Sleep(100 * time.Millisecond) {
		if status, text := fresh.readyz(t); status != http.StatusServiceUnavailable || !strings.Contains(text, "credential of fcm: ") {
			t.Fatalf("with the expired token alone: %d %s", status, text)
		}
	}
	replaceFile(t, other, tokenFile(t, good, now, now.Add(time.Hour)))
	fresh.becomesReady(t)

	replaceFile(t, path, tokenFile(t, good, now, now.Add(time.Hour)))
	s.resolves(p.api, incident)
	close(stop)
	load.Wait()
	if v := s.settle(c, c.urls, time.Minute); len(v.doubts) > 0 {
		t.Errorf("%d doubts", len(v.doubts))
	}
	var audit struct{ Total struct{ Failed int } }
	s.get(p.api+"/v1/audit", &audit)
	if audit.Total.Failed > 0 {
		t.Errorf("%d messages failed", audit.Total.Failed)
	}
	var list json.RawMessage
	s.get(p.api+"/v1/credentials", &list)
	resp, err := http.Get(p.metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	measured, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{
		"the log": p.logs.String() + fresh.logs.String(), "the list": string(list), "the metrics": string(measured), "the incident": fmt.Sprint(incident),
	} {
		if strings.Contains(text, "CANARY") || strings.Contains(text, good) {
			t.Errorf("%s shows a secret: %s", what, text)
		}
	}
	if !strings.Contains(string(list), `"fell_back"`) && !strings.Contains(string(list), `"working"`) {
		t.Errorf("the list says %s", list)
	}
}
