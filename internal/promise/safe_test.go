//go:build linux

package promise

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/sim"
)

// A worker is killed, and the next one starts while the token server is away: it
// is ready, and hands over with the token that the first had kept. With a wrong
// key, or an open folder, nothing starts.
func TestTokenOutlivesTheProcess(t *testing.T) {
	s := newStage(t)
	dir, key := filepath.Join(t.TempDir(), "safe"), filepath.Join(t.TempDir(), "key")
	replaceFile(t, key, base64.StdEncoding.EncodeToString([]byte("CANARYCANARYCANARYCANARYCANARYCA"))+"\n")
	env := []string{"STORMPOST_SECRETS_SAFE=" + dir, "STORMPOST_SECRETS_SAFE_KEY=file:" + key}
	p := s.start("api,worker,watch", env...)
	p.becomesReady(t)
	until := func(what string, so func() bool) {
		t.Helper()
		for by := time.Now().Add(30 * time.Second); !so(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(by) {
				t.Fatalf("not within 30 s: %s", what)
			}
		}
	}
	until("the token is kept", func() bool { _, err := os.Stat(filepath.Join(dir, "fcm.generation")); return err == nil })
	p.kill()
	<-p.done
	if err := s.sims.Token.SetFaults(sim.Fault{Step: sim.StepHeaders, Do: sim.Answer, Code: 503, Error: "temporarily_unavailable"}); err != nil {
		t.Fatal(err)
	}

	next := s.start("api,worker,watch", env...)
	next.becomesReady(t)
	c := newClient(t, s.key, func() string { return next.api })
	submitAll(t, c, 50, func(i int) order { return order{Name: fmt.Sprintf("push-%d", i), Push: true} })
	var list json.RawMessage
	until("the kept one is in use", func() bool {
		s.get(next.api+"/v1/credentials", &list)
		return strings.Contains(string(list), `"kept":true`) && strings.Contains(string(list), `"refresh_failing"`)
	})
	if v := s.settle(c, c.urls, time.Minute); len(v.doubts) > 0 {
		t.Errorf("%d doubts", len(v.doubts))
	}
	stdout, stderr, code := s.command("credentials", "--api", next.api, "--api-key", s.oper)
	if code != 0 || !strings.Contains(stdout, "current (from disk)") || !strings.Contains(stdout, "kept on disk") {
		t.Errorf("stormpost credentials: %d %s%s", code, stdout, stderr)
	}
	text := stdout + string(list) + p.logs.String() + next.logs.String()
	if strings.Contains(text, "CANARY") || strings.Contains(text, "ya29.sim") || strings.Contains(text, "PRIVATE KEY") {
		t.Errorf("a secret is shown: %s", text)
	}

	s.sims.Token.ClearFaults()
	until("the token server's is in use", func() bool {
		var page struct {
			Items []struct {
				Name, Health string
				Generations  []struct{ Kept bool }
			}
		}
		s.get(next.api+"/v1/credentials", &page)
		for _, i := range page.Items {
			if i.Name == "fcm" && i.Health == "working" && !i.Generations[0].Kept {
				return true
			}
		}
		return false
	})
	if status, text := next.readyz(t); status != http.StatusOK {
		t.Errorf("%d %s", status, text)
	}

	other := filepath.Join(t.TempDir(), "key")
	replaceFile(t, other, "another key of thirty-two bytes.")
	for _, tc := range []struct {
		key  string
		open string // to all on the machine
		want string
	}{
		{other, key, "secrets.safe_key: it is not the key that"},
		{key, dir, "secrets.safe: " + dir + " can be read"},
		{key, key, "secrets.safe_key: " + key + " can be read"},
	} {
		info, err := os.Stat(tc.open)
		if err == nil {
			err = os.Chmod(tc.open, info.Mode().Perm()|0o005)
		}
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.tryStart("worker", "STORMPOST_SECRETS_SAFE="+dir, "STORMPOST_SECRETS_SAFE_KEY=file:"+tc.key)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("got %v, want %s", err, tc.want)
		}
		if err := os.Chmod(tc.open, info.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
	}
}
