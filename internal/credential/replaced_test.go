package credential

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// singleUse is a token endpoint that takes each refresh token once, and, with
// grace, the one before until the newest is used.
type singleUse struct {
	*httptest.Server
	t     *testing.T
	grace bool

	mu            sync.Mutex
	cur, prev     string
	served        int
	refusals      []string
	before, after func(token string) // its arrival, the answer; nil: nothing
	code          string             // to answer with instead
}

func startSingleUse(t *testing.T, grace bool) *singleUse {
	t.Helper()
	s := &singleUse{t: t, cur: "CANARY-0", grace: grace}
	s.Server = httptest.NewServer(http.HandlerFunc(s.token))
	t.Cleanup(s.Close)
	return s
}

func (s *singleUse) token(w http.ResponseWriter, r *http.Request) {
	token := r.PostFormValue("refresh_token")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.before != nil {
		s.before(token)
	}
	w.Header().Set("Content-Type", "application/json")
	switch {
	case s.code != "":
		w.WriteHeader(400)
		fmt.Fprintf(w, `{"error":%q}`, s.code)
		return
	case token == s.cur:
		s.prev, s.cur = s.cur, fmt.Sprintf("CANARY-%d", s.served+1)
	case s.grace && token == s.prev:
	default:
		s.refusals = append(s.refusals, fmt.Sprintf("%s, want %s", token, s.cur))
		w.WriteHeader(400)
		fmt.Fprintf(w, `{"error":"invalid_grant","error_description":"%s is used up"}`, token)
		return
	}
	s.served++
	if s.after != nil {
		s.after(s.cur)
	}
	fmt.Fprintf(w, `{"access_token":"at-%d","token_type":"Bearer","expires_in":60,"refresh_token":%q}`, s.served, s.cur)
}

func (s *singleUse) newest() string { s.mu.Lock(); defer s.mu.Unlock(); return s.cur }

func (s *singleUse) set(f func()) { s.mu.Lock(); defer s.mu.Unlock(); f() }

// client is a process's source, with the refresh token that was configured.
func (s *singleUse) client(t *testing.T, safe *Safe, configured string) *OAuth2 {
	t.Helper()
	refresh := New(Config{Name: "mail.refresh_token", Source: Fixed("test", configured)})
	t.Cleanup(refresh.Close)
	return &OAuth2{URL: s.URL, ClientID: "stormpost", Refresh: refresh, Safe: safe, Name: "mail", Client: s.Client()}
}

func (s *singleUse) check(t *testing.T, want int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.refusals) != want {
		t.Errorf("%d refusals, want %d: %s", len(s.refusals), want, strings.Join(s.refusals, "; "))
	}
}

func fetchOK(t *testing.T, o *OAuth2) {
	t.Helper()
	if _, err := o.Fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// onDisk is the newest refresh token that the safe has.
func onDisk(t *testing.T, o *OAuth2) string {
	t.Helper()
	var chains []chain
	if err := o.slot().load(&chains); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if len(chains) == 0 {
		return ""
	}
	return chains[0].Token
}

// What the server replaces survives a restart, and is on disk before the answer
// that brought it is used.
func TestReplacedSurvivesARestart(t *testing.T) {
	s := startSingleUse(t, false)
	safe := openSafe(t, filepath.Join(t.TempDir(), "safe"), testSafeKey)
	for range 5 {
		o := s.client(t, safe, "CANARY-0")
		for range 2 {
			fetchOK(t, o)
			if got := onDisk(t, o); got != s.newest() {
				t.Errorf("%s is on disk, want %s", got, s.newest())
			}
		}
	}
	s.check(t, 0)

	// A new configured one has a chain of its own, beside the old process's.
	old, next := s.client(t, safe, "CANARY-0"), startSingleUse(t, false)
	next.cur = "CANARY-new"
	other := next.client(t, safe, "CANARY-new")
	old.URL, other.URL = s.URL, s.URL
	swap := func(to *singleUse) { s.Config.Handler = http.HandlerFunc(to.token) }
	for range 2 {
		fetchOK(t, old)
		swap(next)
		fetchOK(t, other)
		swap(s)
	}
	s.check(t, 0)
	next.check(t, 0)
	if text := fmt.Sprintf("%v %+v %#v %v", old, old, old, safe); strings.Contains(text, "CANARY") {
		t.Errorf("shows a token: %s", text)
	}
}

// Several processes share one folder: no token is shown twice.
func TestReplacedIsShared(t *testing.T) {
	s := startSingleUse(t, false)
	dir := filepath.Join(t.TempDir(), "safe")
	var wg sync.WaitGroup
	for range 4 {
		o := s.client(t, openSafe(t, dir, testSafeKey), "CANARY-0")
		wg.Go(func() {
			for range 25 {
				if _, err := o.Fetch(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	s.check(t, 0)
	if s.served != 100 { // all are through
		t.Errorf("%d tokens", s.served)
	}

	// One that refreshes keeps the others waiting, to the end of their context.
	o := s.client(t, openSafe(t, dir, testSafeKey), "CANARY-0")
	unlock, err := o.slot().lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := o.Fetch(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "another process holds") {
		t.Errorf("beside another: %v", err)
	}
	unlock()
	fetchOK(t, o)
	s.check(t, 0)
}

// Nothing that was good once is thrown away over a refusal.
func TestReplacedIsRefused(t *testing.T) {
	s := startSingleUse(t, false)
	safe := openSafe(t, filepath.Join(t.TempDir(), "safe"), testSafeKey)
	o := s.client(t, safe, "CANARY-0")
	fetchOK(t, o)
	newest := s.newest()
	bad := func(code string, requests string) {
		t.Helper()
		var shown []string
		s.set(func() { s.code, s.before = code, func(token string) { shown = append(shown, token) } })
		if _, err := o.Fetch(t.Context()); err == nil || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: %v", code, err)
		}
		s.set(func() { s.code, s.before = "", nil })
		if got := strings.Join(shown, " "); got != requests || onDisk(t, o) != newest {
			t.Errorf("%s: showed %s, want %s; %s is on disk", code, got, requests, onDisk(t, o))
		}
	}
	bad("invalid_client", newest+" "+newest) // about the client's secret
	bad("temporarily_unavailable", newest)
	bad("invalid_grant", newest+" CANARY-0")
	o = s.client(t, safe, "CANARY-0") // a restart: the configured one was refused last
	fetchOK(t, o)
	s.check(t, 0)

	// The server was set back: the configured one is good again.
	s.set(func() { s.cur = "CANARY-0" })
	fetchOK(t, o)
	if got := onDisk(t, o); got != s.newest() {
		t.Errorf("%s is on disk, want %s", got, s.newest())
	}
	s.check(t, 1)
}

// A disk that fails costs no token while the process lives.
func TestReplacedWithoutADisk(t *testing.T) {
	s := startSingleUse(t, false)
	dir := filepath.Join(t.TempDir(), "safe")
	var logged strings.Builder
	safe, err := OpenSafe(dir, testSafeKey, slog.New(slog.NewTextHandler(&logged, nil)))
	if err != nil {
		t.Fatal(err)
	}
	o := s.client(t, safe, "CANARY-0")
	fetchOK(t, o)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	fetchOK(t, o)
	fetchOK(t, o)
	if text := logged.String(); !strings.Contains(text, "credential=mail") || !strings.Contains(text, "can't be kept") || strings.Contains(text, "CANARY") {
		t.Errorf("logged: %s", text)
	}
	openSafe(t, dir, testSafeKey)
	var missing string
	s.set(func() {
		s.before = func(token string) {
			if got := onDisk(t, o); got != token {
				missing = fmt.Sprintf("%s was shown and %s on disk", token, got)
			}
		}
	})
	fetchOK(t, o)
	s.check(t, 0)
	if missing != "" {
		t.Error(missing)
	}

	// What was tampered with gives way to the configured one, and says so.
	if err := os.WriteFile(o.slot().path(), []byte(strings.Repeat("CANARY", 20)), 0o600); err != nil {
		t.Fatal(err)
	}
	s.set(func() { s.cur, s.before = "CANARY-0", nil })
	fetchOK(t, s.client(t, safe, "CANARY-0"))
	if text := logged.String(); !strings.Contains(text, "kept refresh token is not used") || strings.Contains(text, "CANARY") {
		t.Errorf("logged: %s", text)
	}
}

// refreshVariable makes the test's program one that only refreshes: its value is
// the token endpoint, and the folder of the safe.
const refreshVariable = "STORMPOST_TEST_REFRESH"

func TestRefreshesUntilKilled(t *testing.T) {
	url, dir, ok := strings.Cut(os.Getenv(refreshVariable), " ")
	if !ok {
		return // it is another test's program
	}
	s := &singleUse{t: t, Server: &httptest.Server{URL: url}}
	refresh := New(Config{Name: "mail.refresh_token", Source: Fixed("test", "CANARY-0")})
	o := &OAuth2{URL: s.URL, ClientID: "stormpost", Refresh: refresh, Safe: openSafe(t, dir, testSafeKey), Name: "mail"}
	for {
		fetchOK(t, o)
	}
}

// Two processes are killed again and again, wherever they are. The only valid
// token is never lost: what is shown is always the newest, or, if its successor
// never came to be used, the one before.
func TestKilledWhileRefreshing(t *testing.T) {
	s := startSingleUse(t, true)
	dir := filepath.Join(t.TempDir(), "safe")
	openSafe(t, dir, testSafeKey)
	arrived := make(chan struct{}, 1)
	tell := func(string) {
		select {
		case arrived <- struct{}{}:
		default:
		}
	}
	s.set(func() { s.before = tell })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	type program struct {
		*exec.Cmd
		said bytes.Buffer
	}
	begin := func() *program {
		p := &program{Cmd: exec.Command(self, "-test.run=^TestRefreshesUntilKilled$")}
		p.Env = append(os.Environ(), refreshVariable+"="+s.URL+" "+dir)
		p.Stdout, p.Stderr = &p.said, &p.said
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		return p
	}
	kill := func(p *program) {
		if err := p.Process.Kill(); err != nil {
			t.Errorf("it ended by itself: %v: %s", err, p.said.String())
		}
		_ = p.Wait() // it was killed
	}
	running := begin()
	for round := range 12 {
		next := begin()
		for range 4 + round {
			select {
			case <-arrived:
			case <-time.After(30 * time.Second):
				t.Fatalf("nobody refreshes: %s %s", running.said.String(), next.said.String())
			}
		}
		// Some microseconds later each time: before the answer, while it is
		// written, after it.
		time.Sleep(time.Duration(round) * 200 * time.Microsecond)
		kill(running)
		if text := running.said.String(); text != "" {
			t.Errorf("it says: %s", text)
		}
		running = next
	}
	kill(running)
	s.check(t, 0)
	s.set(func() { s.before = nil })
	fetchOK(t, s.client(t, openSafe(t, dir, testSafeKey), "CANARY-0"))
	t.Logf("%d tokens", s.served)
}
