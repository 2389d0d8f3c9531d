package keyring

import (
	"context"
	"errors"
	"github.com/stormpost/stormpost/internal/message"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

type source struct {
	records atomic.Pointer[[]Record]
	err     atomic.Pointer[error]
	calls   atomic.Int64
}

func (s *source) set(records ...Record) { s.records.Store(&records) }

func (s *source) Keys(context.Context) ([]Record, error) {
	s.calls.Add(1)
	if err := s.err.Load(); err != nil {
		return nil, *err
	}
	return *s.records.Load(), nil
}

var errAway = errors.New("away")

func mint(id int64, test bool) (string, Record) {
	text, r := Mint(test)
	r.ID, r.Tenant, r.TenantName, r.Scopes, r.Domains = id, 7, "acme", []Scope{Send, Read}, []string{"example.com"}
	return text, r
}

func open(t *testing.T, path string, s Source) *Ring {
	t.Helper()
	return Open(path, s, slog.New(slog.DiscardHandler), time.Now)
}

func TestMint(t *testing.T) {
	seen := map[string]bool{}
	for _, test := range []bool{false, true} {
		for range 100 {
			text, r := Mint(test)
			if strings.HasPrefix(text, "sp_test_") != test || r.Test != test || seen[r.Prefix] || !strings.HasPrefix(text[8:], r.Prefix) {
				t.Fatalf("%s: %+v", text, r)
			}
			seen[r.Prefix] = true
			if prefix, ok := prefixOf(text); !ok || prefix != r.Prefix {
				t.Fatalf("%s: prefix %q", text, prefix)
			}
		}
	}
}

func TestVerify(t *testing.T) {
	live, a := mint(1, false)
	test, b := mint(2, true)
	gone, c := mint(3, false)
	c.Revoked = true
	open0, d := mint(4, false)
	d.Tenant = 0
	operator, e := mint(5, false)
	e.Tenant, e.Scopes = 0, []Scope{Operator}
	s := &source{}
	s.set(a, b, c, d, e)
	r := open(t, filepath.Join(t.TempDir(), "keys"), s)
	if r.Ready() == nil {
		t.Error("ready without keys")
	}
	if _, err := r.Verify(live); !errors.Is(err, message.ErrUnavailable) {
		t.Errorf("before any refresh: %v", err)
	}
	if err := r.Refresh(context.Background()); err != nil {
		t.Fatal(err)
	}
	p, err := r.Verify(live)
	want := &Principal{Tenant: 7, TenantName: "acme", KeyID: 1, Prefix: live[8:16], Domains: []string{"example.com"}, Scopes: []Scope{Send, Read}}
	if err != nil || !reflect.DeepEqual(p, want) {
		t.Errorf("%+v, %v, want %+v", p, err, want)
	}
	if !p.Can(Send) || p.Can(Operator) {
		t.Errorf("scopes: %v", p.Scopes)
	}
	if p, err := r.Verify(test); err != nil || !p.Test {
		t.Errorf("test key: %+v, %v", p, err)
	}
	if p, err := r.Verify(operator); err != nil || p.Tenant != 0 {
		t.Errorf("operator's key: %+v, %v", p, err)
	}
	flipped := []byte(live)
	flipped[len(flipped)-1] ^= 1
	for name, text := range map[string]string{
		"empty": "", "nonsense": "x", "revoked": gone, "of no tenant": open0, "wrong secret": string(flipped),
		"wrong mode": strings.Replace(live, "sp_live_", "sp_test_", 1), "longer": live + "A", "shorter": live[:len(live)-1],
		"unknown": "sp_live_" + strings.Repeat("a", 34), "other secret": live[:16] + test[16:],
	} {
		if p, err := r.Verify(text); err != ErrUnauthorized || p != nil {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	// A revocation is seen at the next refresh.
	a.Revoked = true
	s.set(a)
	if err := r.Refresh(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Verify(live); err != ErrUnauthorized {
		t.Errorf("after it was revoked: %v", err)
	}
}

func TestSnapshot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	text, rec := mint(1, false)
	s := &source{}
	s.set(rec)
	if err := open(t, path, s).Refresh(context.Background()); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Fatalf("%v, %v", info.Mode(), err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), text) || strings.Contains(string(b), text[16:]) {
		t.Error("the snapshot holds the key")
	}

	// With the source away a new ring works from the file.
	s.err.Store(&errAway)
	again := open(t, path, s)
	if p, err := again.Verify(text); err != nil || p.KeyID != 1 || again.Ready() != nil || again.AsOf().IsZero() {
		t.Errorf("%+v, %v", p, err)
	}
	if err := again.Refresh(context.Background()); !errors.Is(err, errAway) {
		t.Errorf("refresh: %v", err)
	}
	if _, err := again.Verify(text); err != nil {
		t.Errorf("after a failed refresh: %v", err)
	}

	// The same keys are not written again.
	s.err.Store(nil)
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	if err := again.Refresh(context.Background()); err != nil {
		t.Fatal(err)
	}
	if info, err = os.Stat(path); err != nil || info.Mode() != 0o400 {
		t.Errorf("written without need: %v, %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestBadSnapshots(t *testing.T) {
	dir := t.TempDir()
	text, rec := mint(1, false)
	good := filepath.Join(dir, "good")
	s := &source{}
	s.set(rec)
	if err := open(t, good, s).Refresh(context.Background()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		content string
		mode    os.FileMode
	}{
		"cut":           {string(b[:len(b)/2]), 0o600},
		"empty":         {"", 0o600},
		"other version": {strings.Replace(string(b), `"version":1`, `"version":2`, 1), 0o600},
		"short hash":    {`{"version":1,"keys":[{"ID":1,"Hash":"AAAA"}]}`, 0o600},
		"writable":      {string(b), 0o622},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		r := open(t, path, s)
		if _, err := r.Verify(text); !errors.Is(err, message.ErrUnavailable) || r.Ready() == nil {
			t.Errorf("%s: used, %v", name, err)
		}
		if err := r.Refresh(context.Background()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := r.Verify(text); err != nil {
			t.Errorf("%s: after a refresh %v", name, err)
		}
		if s, err := load(path); err != nil || len(s.Keys) == 0 {
			t.Errorf("%s: not replaced: %v", name, err)
		}
	}
	// Keys that can't be saved are used all the same.
	r := open(t, filepath.Join(dir, "no", "such", "folder"), s)
	if err := r.Refresh(context.Background()); err == nil {
		t.Error("a snapshot that can't be written is no error")
	}
	if _, err := r.Verify(text); err != nil {
		t.Errorf("not saved, and not used: %v", err)
	}
}

func TestRun(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		text, rec := mint(1, false)
		s := &source{}
		s.set()
		r := open(t, filepath.Join(dir, "keys"), s)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); r.Run(ctx) }()
		synctest.Wait()
		s.set(rec)
		time.Sleep(refreshEvery + time.Millisecond) // the bubble's clock
		synctest.Wait()
		if _, err := r.Verify(text); err != nil {
			t.Errorf("a new key after a second: %v", err)
		}
		s.err.Store(&errAway)
		time.Sleep(10 * refreshEvery)
		if _, err := r.Verify(text); err != nil || s.calls.Load() < 10 {
			t.Errorf("with the source away: %v after %d calls", err, s.calls.Load())
		}
		cancel()
		<-done
	})
}

func BenchmarkVerify(b *testing.B) {
	text, rec := mint(1, false)
	s := &source{}
	s.set(rec)
	r := Open(filepath.Join(b.TempDir(), "keys"), s, slog.New(slog.DiscardHandler), time.Now)
	if err := r.Refresh(context.Background()); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Verify(text); err != nil {
			b.Fatal(err)
		}
	}
}
