package credential

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// store is a Source that a test tells what to give.
type store struct {
	mu    sync.Mutex
	m     Material
	err   error
	life  time.Duration // each Fetch makes a new one: token-1, token-2
	asked int
	hang  bool // until ctx ends
	slow  time.Duration
}

func (s *store) String() string { return "store" }

func (s *store) Fetch(ctx context.Context) (Material, error) {
	time.Sleep(s.slow)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	switch {
	case s.hang:
		s.mu.Unlock()
		<-ctx.Done()
		s.mu.Lock()
		return Material{}, ctx.Err()
	case s.err != nil:
		return Material{}, s.err
	case s.life > 0:
		s.m = Material{Value: Secret(fmt.Sprintf("token-%d", s.asked)), Issued: time.Now(), Expires: time.Now().Add(s.life)}
		return s.m, nil
	}
	return s.m, nil
}

func (s *store) put(m Material) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.Next = time.Now().Add(time.Second)
	s.m, s.err, s.life = m, nil, 0
}

func (s *store) set(f func(*store)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

func (s *store) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

var errDown = errors.New("connection refused")

// file is a store that is read again each second, as a file is.
type file struct{ store }

func (f *file) Fetch(ctx context.Context) (Material, error) {
	m, err := f.store.Fetch(ctx)
	m.Next = time.Now().Add(time.Second)
	return m, err
}

// bubble runs f in a synctest bubble, where time passes by itself and
// synctest.Wait waits for whatever goes on in the background.
func bubble(t *testing.T, s Source, f func(t *testing.T, c *Credential)) {
	synctest.Test(t, func(t *testing.T) {
		c := New(Config{Name: "relay", Source: s, Check: func(value string) error {
			if strings.Contains(value, "unfit") {
				return errors.New("it is no token: " + value)
			}
			return nil
		}, Logger: slog.New(slog.NewTextHandler(logs{t}, nil))})
		t.Cleanup(c.Close)
		f(t, c)
	})
}

// logs fails the test when a secret is logged.
type logs struct{ t *testing.T }

func (l logs) Write(b []byte) (int, error) {
	if strings.Contains(string(b), "token-") || strings.Contains(string(b), "CANARY") {
		l.t.Errorf("logged: %s", b)
	}
	return len(b), nil
}

func mustUse(t *testing.T, c *Credential, want string) Use {
	t.Helper()
	u, err := c.Use(t.Context())
	if err != nil || u.Value() != want {
		t.Fatalf("Use = %q, %v; want %q", u.Value(), err, want)
	}
	return u
}

func mustBe(t *testing.T, c *Credential, want Health, trouble string) Status {
	t.Helper()
	s := c.Status()
	if s.Health != want || !strings.Contains(s.Trouble, trouble) {
		t.Errorf("health %s (%s), want %s (…%s…)", s.Health, s.Trouble, want, trouble)
	}
	if text := fmt.Sprintf("%+v %#v", s, s); strings.Contains(text, "token-") {
		t.Errorf("shows a secret: %s", text)
	}
	return s
}

func TestManyAskOnce(t *testing.T) {
	s := &store{life: time.Hour, slow: time.Second}
	bubble(t, s, func(t *testing.T, c *Credential) {
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { mustUse(t, c, "token-1").Accepted() })
		}
		wg.Wait()
		if n := s.count(); n != 1 {
			t.Errorf("%d requests for one token", n)
		}
		mustBe(t, c, Working, "")
	})
}

func TestRenewedAhead(t *testing.T) {
	s := &store{life: time.Hour}
	bubble(t, s, func(t *testing.T, c *Credential) {
		mustUse(t, c, "token-1").Accepted()
		time.Sleep(38 * time.Minute)
		mustUse(t, c, "token-1").Accepted()
		if n := s.count(); n != 1 {
			t.Fatalf("%d requests after 38 minutes, want 1", n)
		}
		time.Sleep(8 * time.Minute) // past three quarters of its life
		if n := s.count(); n != 2 {
			t.Fatalf("%d requests, want 2, though nobody asked", n)
		}
		canary := mustUse(t, c, "token-2")
		mustUse(t, c, "token-1") // until the canary is through
		canary.Accepted()
		mustUse(t, c, "token-2")
	})
}

// The canary's news decides: refused, or never heard of again.
func TestCanary(t *testing.T) {
	s := &file{}
	s.put(Material{Value: "token-a"})
	bubble(t, s, func(t *testing.T, c *Credential) {
		mustUse(t, c, "token-a").Accepted()
		s.put(Material{Value: "token-b"})
		time.Sleep(2 * time.Second)
		mustUse(t, c, "token-b").Rejected("535 no")
		for range 100 {
			mustUse(t, c, "token-a").Accepted()
		}
		mustBe(t, c, FellBack, "535 no")
		time.Sleep(rejectMin + time.Second) // the service may have learned of it
		lost := mustUse(t, c, "token-b")
		mustUse(t, c, "token-a")
		time.Sleep(canaryPatience)
		mustUse(t, c, "token-b").Accepted()
		mustUse(t, c, "token-b")
		mustBe(t, c, Working, "")
		lost.Rejected("503 late news of another time") // of the same generation: it counts
		mustBe(t, c, FellBack, "late news")
		time.Sleep(time.Second)
		mustUse(t, c, "token-a") // what was good before
	})
}

// Somebody signs in with a new generation at once, whether anyone needs it or
// not.
func TestProved(t *testing.T) {
	s := &file{}
	s.put(Material{Value: "token-a"})
	bubble(t, s, func(t *testing.T, c *Credential) {
		good := true
		var asked []string
		c.ProveBy(func(ctx context.Context) error {
			u, err := c.Use(ctx)
			if err != nil {
				return err
			}
			asked = append(asked, u.Value())
			if good {
				u.Accepted()
			} else {
				u.Rejected("535 no")
			}
			return nil
		})
		mustUse(t, c, "token-a").Accepted()
		s.put(Material{Value: "token-b"})
		time.Sleep(2 * time.Second)
		mustBe(t, c, Working, "")
		good = false
		s.put(Material{Value: "token-c"})
		time.Sleep(2 * time.Second)
		mustBe(t, c, FellBack, "535 no")
		mustUse(t, c, "token-b")
		if got := strings.Join(asked, " "); got != "token-b token-c" {
			t.Errorf("proved %s", got)
		}
	})
}

// What is no good never displaces what works.
func TestLastKnownGood(t *testing.T) {
	at := func(d time.Duration) time.Time { return time.Now().Add(d) }
	for name, tc := range map[string]struct {
		bad    func() Material
		err    error
		health Health
		says   string
	}{
		"expired":    {bad: func() Material { return Material{Value: "token-old", Expires: at(-time.Minute)} }, health: FellBack, says: "expired at"},
		"unparsable": {bad: func() Material { return Material{Value: "unfit"} }, health: FellBack, says: "can't be used: it is no token: [secret]"},
		"older": {bad: func() Material {
			return Material{Value: "token-old", Issued: at(-time.Hour), Expires: at(20 * time.Hour)}
		}, health: FellBack, says: "older"},
		"ends sooner": {bad: func() Material { return Material{Value: "token-old", Expires: at(time.Hour)} }, health: FellBack, says: "older"},
		"refused":     {bad: func() Material { return Material{Value: "token-new", Issued: at(0), Expires: at(20 * time.Hour)} }, health: FellBack, says: "refuses"},
		"gone":        {err: errDown, health: Failing, says: "connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &file{}
			bubble(t, s, func(t *testing.T, c *Credential) {
				good := Material{Value: "token-good", Issued: at(0), Expires: at(10 * time.Hour)}
				if name == "ends sooner" {
					good.Issued = time.Time{}
				}
				s.put(good)
				synctest.Wait()
				time.Sleep(2 * time.Second)
				mustUse(t, c, "token-good").Accepted()
				if tc.err != nil {
					s.set(func(s *store) { s.err = tc.err })
				} else {
					s.put(tc.bad())
				}
				for range 300 {
					time.Sleep(time.Second)
					u, err := c.Use(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					switch u.Value() {
					case "token-good":
						u.Accepted()
					case "token-new":
						u.Rejected("401")
					default:
						t.Fatalf("used %s", u.Value())
					}
				}
				st := mustBe(t, c, tc.health, tc.says)
				if !strings.Contains(st.Trouble, "in use, until ") {
					t.Errorf("says %q", st.Trouble)
				}
				// And back: the source has the good one again.
				s.put(good)
				time.Sleep(30 * time.Second)
				mustBe(t, c, Working, "")
			})
		})
	}
}

// An older generation is better than none.
func TestOlderIsASpare(t *testing.T) {
	s := &file{}
	bubble(t, s, func(t *testing.T, c *Credential) {
		s.put(Material{Value: "token-2", Issued: time.Now()})
		time.Sleep(2 * time.Second)
		two := mustUse(t, c, "token-2")
		two.Accepted()
		s.put(Material{Value: "token-1", Issued: time.Now().Add(-time.Hour)})
		time.Sleep(2 * time.Second)
		mustUse(t, c, "token-2").Rejected("535 taken back")
		mustUse(t, c, "token-1").Accepted()
		mustBe(t, c, Working, "")
	})
}

// While the source is away, a spare doesn't wait for it.
func TestSpareWhileTheSourceIsAway(t *testing.T) {
	s := &file{}
	s.put(Material{Value: "token-a"})
	bubble(t, s, func(t *testing.T, c *Credential) {
		mustUse(t, c, "token-a").Accepted()
		s.put(Material{Value: "token-b"})
		time.Sleep(2 * time.Second)
		mustUse(t, c, "token-b").Accepted()
		s.set(func(s *store) { s.err = errDown })
		time.Sleep(3 * time.Minute) // the pauses are long by now
		mustUse(t, c, "token-b").Rejected("401")
		mustUse(t, c, "token-a").Accepted()
		mustBe(t, c, FellBack, "401")
	})
}

func TestLastSecond(t *testing.T) {
	s := &store{life: time.Hour}
	bubble(t, s, func(t *testing.T, c *Credential) {
		begin := time.Now()
		mustUse(t, c, "token-1").Accepted()
		s.set(func(s *store) { s.err = errDown })
		time.Sleep(50 * time.Minute)
		mustBe(t, c, Failing, "can't be refreshed: connection refused; the last one is in use, until ")
		time.Sleep(time.Hour - time.Since(begin) - time.Millisecond)
		mustUse(t, c, "token-1").Accepted()
		time.Sleep(time.Millisecond)
		if u, err := c.Use(t.Context()); !errors.Is(err, ErrNone) || !errors.Is(err, errDown) || !strings.Contains(err.Error(), "credential relay") {
			t.Fatalf("Use = %v, %v, past its end", u, err)
		}
		mustBe(t, c, Missing, "connection refused")
		if n := s.count(); n < 25 || n > 80 {
			t.Errorf("%d requests in 15 minutes, want one in 15 to 30 s", n)
		}
		s.set(func(s *store) { s.err = nil })
		time.Sleep(retryMax)
		if _, err := c.Use(t.Context()); err != nil {
			t.Errorf("with the source back: %v", err)
		}
	})
}

func TestPauseAfterFailure(t *testing.T) {
	s := &store{err: errDown}
	bubble(t, s, func(t *testing.T, c *Credential) {
		for range 100 {
			if _, err := c.Use(t.Context()); err == nil {
				t.Fatal("a token from nowhere")
			}
		}
		if n := s.count(); n != 1 {
			t.Errorf("%d requests within no time, want 1", n)
		}
	})
}

func TestUseEndsWithContext(t *testing.T) {
	s := &store{hang: true}
	bubble(t, s, func(t *testing.T, c *Credential) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Use(ctx); err != context.DeadlineExceeded {
			t.Errorf("Use = %v", err)
		}
		begin := time.Now()
		if _, err := c.Use(t.Context()); err == nil || time.Since(begin) > fetchTimeout {
			t.Errorf("a source that hangs: %v after %v", err, time.Since(begin))
		}
	})
}

func TestCloseEndsTheRequest(t *testing.T) {
	s := &store{hang: true}
	bubble(t, s, func(t *testing.T, c *Credential) {
		got := make(chan error)
		go func() { _, err := c.Use(t.Context()); got <- err }()
		synctest.Wait()
		c.Close()
		if err := <-got; !errors.Is(err, context.Canceled) {
			t.Errorf("Use = %v", err)
		}
		if _, err := c.Use(t.Context()); !errors.Is(err, errClosed) {
			t.Errorf("Use after Close = %v", err)
		}
	})
}

func TestExpiringSoon(t *testing.T) {
	s := &file{}
	bubble(t, s, func(t *testing.T, c *Credential) {
		s.put(Material{Value: "token-1", Issued: time.Now(), Expires: time.Now().Add(24 * time.Hour)})
		time.Sleep(2 * time.Second)
		mustUse(t, c, "token-1").Accepted()
		time.Sleep(20 * time.Hour)
		mustBe(t, c, Working, "")
		time.Sleep(2 * time.Hour)
		mustBe(t, c, ExpiringSoon, "nothing follows")
		s.put(Material{Value: "token-2", Issued: time.Now(), Expires: time.Now().Add(24 * time.Hour)})
		time.Sleep(2 * time.Second)
		mustUse(t, c, "token-2").Accepted()
		mustBe(t, c, Working, "")
	})
}

func TestUsePrintsNoSecret(t *testing.T) {
	c := New(Config{Name: "relay", Source: Fixed("test", "CANARY")})
	defer c.Close()
	u, err := c.Use(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	u.Rejected("535 no CANARY here")
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "use", u, "credential", c, "status", c.Status())
	for _, v := range []any{u, &u, c, c.Status(), Secret("CANARY"), Material{Value: "CANARY"}, Fixed("test", "CANARY")} {
		for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
			log.WriteString(fmt.Sprintf(format, v))
		}
	}
	if _, err := c.Use(t.Context()); err != nil {
		log.WriteString(err.Error())
	}
	if strings.Contains(log.String(), "CANARY") || !strings.Contains(log.String(), "[secret]") {
		t.Errorf("shown: %s", log.String())
	}
}
