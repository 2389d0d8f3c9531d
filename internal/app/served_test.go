package app

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/config"
	"github.com/stormpost/stormpost/internal/devstack/teststack"
	"github.com/stormpost/stormpost/internal/keyring"
)

// served is a process of all roles on real stores, whose emails go to a provider
// of the test's own.
type served struct {
	t      *testing.T
	api    string // base URL
	ledger *dedupe.Ledger
	key    string // sends and reads
}

func serveWith(t *testing.T, provider delivery.Provider) *served {
	t.Helper()
	if testing.Short() {
		t.Skip("needs PostgreSQL and Kafka")
	}
	cfg := config.Default()
	cfg.DSN, cfg.Brokers = config.Secret(ledgertest.DSN(t)), teststack.Kafka(t)
	cfg.Kafka.Prefix = "test-" + strings.ToLower(rand.Text()[:12])
	cfg.Listen, cfg.MetricsListen, cfg.DataDir = "127.0.0.1:0", "", t.TempDir()
	cfg.Log.Format = "text"
	ctx, stop := context.WithCancel(context.Background())
	ready, ended := make(chan *process, 1), make(chan error, 1)
	go func() { ended <- serve(ctx, cfg, Options{Version: "test", Output: t.Output()}, provider, ready) }()
	var p *process
	select {
	case p = <-ready:
	case err := <-ended:
		stop()
		t.Fatalf("serve ended: %v", err)
	}
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		p.removeTopics()
	})
	l, err := dedupe.Open(dedupe.Config{DSN: cfg.DSN.Reveal()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	s := &served{t: t, api: p.addr.API, ledger: l}
	s.key, _ = s.newKey()
	if err := p.ring.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *served) newKey() (text string, r keyring.Record) {
	s.t.Helper()
	text, r, err := CreateKey(s.t.Context(), s.ledger, "acme", []string{"*"}, []keyring.Scope{keyring.Send, keyring.Read}, false)
	if err != nil {
		s.t.Fatal(err)
	}
	return text, r
}

// ask makes a request, and gives the answer with its whole body.
func (s *served) ask(method, path, key string, in any) (*http.Response, []byte) {
	s.t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		s.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.api+path, bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp, b
}

// await asks until done says so.
func (s *served) await(what string, done func() bool) {
	s.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); !done(); <-tick.C {
		if time.Now().After(deadline) {
			s.t.Fatalf("not in a minute: %s", what)
		}
	}
}

// A key that was revoked is answered as one that never was, byte for byte.
func TestRevokedKeyIsAnsweredAsNonsense(t *testing.T) {
	s := serveWith(t, newFragile())
	key, record := s.newKey()
	const path = "/v1/messages?limit=1"
	s.await("the key is known", func() bool {
		resp, _ := s.ask(http.MethodGet, path, key, nil)
		return resp.StatusCode == http.StatusOK
	})
	if err := s.ledger.RevokeKey(t.Context(), record.Prefix); err != nil {
		t.Fatal(err)
	}
	s.await("the key is refused", func() bool {
		resp, _ := s.ask(http.MethodGet, path, key, nil)
		return resp.StatusCode != http.StatusOK
	})
	never, _ := keyring.Mint(false)
	wrong := key[:len(key)-1] + string(key[len(key)-1]^1)
	for _, ask := range [][2]string{{http.MethodGet, path}, {http.MethodPost, "/v1/emails"}} {
		want, wantBody := s.ask(ask[0], ask[1], "nonsense", nil)
		for what, key := range map[string]string{"revoked": key, "never made": never, "revoked and wrong": wrong, "missing": ""} {
			got, body := s.ask(ask[0], ask[1], key, nil)
			for _, itsOwn := range []string{"Date", "X-Request-Id"} {
				got.Header.Del(itsOwn)
				want.Header.Del(itsOwn)
			}
			if got.Status != want.Status || got.StatusCode != http.StatusUnauthorized || !bytes.Equal(body, wantBody) || !sameHeader(got.Header, want.Header) {
				t.Errorf("%s %s with a key that is %s: %s %v %s\nwith nonsense: %s %v %s", ask[0], ask[1], what, got.Status, got.Header, body, want.Status, want.Header, wantBody)
			}
		}
	}
}

func sameHeader(a, b http.Header) bool {
	var x, y bytes.Buffer
	return a.Write(&x) == nil && b.Write(&y) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}
