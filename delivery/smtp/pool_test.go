package smtp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// testClock is a clock that only moves when it is told to.
type testClock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *testClock { return &testClock{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)} }

func (c *testClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *testClock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func TestConnectionIsKept(t *testing.T) {
	srv := startServer(t, script{offers: everything})
	clock := newClock()
	p := newProvider(t, srv, func(c *Config) { c.Now, c.IdleTimeout = clock.Now, time.Minute })
	for i := range 5 {
		if r := send(t, p, envelope(i)); r.Outcome != message.Sent {
			t.Fatalf("%+v", r)
		}
	}
	if n := srv.connections(); n != 1 || srv.count("RSET") != 0 {
		t.Fatalf("%d connections, %q", n, srv.lines())
	}
	clock.add(verifyAfter)
	send(t, p, envelope(5))
	if n := srv.connections(); n != 1 || srv.count("RSET") != 1 {
		t.Fatalf("after a pause: %d connections, %q", n, srv.lines())
	}
	clock.add(time.Minute + 1)
	send(t, p, envelope(6))
	if n := srv.connections(); n != 2 {
		t.Fatalf("after IdleTimeout: %d connections", n)
	}
}

func TestMaxPerConnection(t *testing.T) {
	srv := startServer(t, script{offers: everything})
	p := newProvider(t, srv, func(c *Config) { c.Connections, c.MaxPerConnection = 1, 3 })
	for i := range 7 {
		if r := send(t, p, envelope(i)); r.Outcome != message.Sent {
			t.Fatalf("%+v", r)
		}
	}
	if n := srv.connections(); n != 3 || srv.count("QUIT") != 2 {
		t.Errorf("%d connections, %d QUITs", n, srv.count("QUIT"))
	}
}

// A connection that died while nobody used it costs no message anything.
func TestDeadIdleConnection(t *testing.T) {
	srv := startServer(t, script{offers: everything})
	p := newProvider(t, srv, func(c *Config) { c.Connections = 1 })
	send(t, p, envelope(1))
	srv.dropAll()
	c := <-p.idle
	for c.quiet() { // until the end of the connection has arrived
		time.Sleep(time.Millisecond)
	}
	p.idle <- c
	if r := send(t, p, envelope(2)); r.Outcome != message.Sent {
		t.Fatalf("%+v", r)
	}
	if n := srv.connections(); n != 2 {
		t.Errorf("%d connections", n)
	}
}

func TestCloseQuits(t *testing.T) {
	srv := startServer(t, script{offers: everything})
	p := newProvider(t, srv, nil)
	a, b := reserve(t, p), reserve(t, p)
	a.Release()
	done := make(chan error, 1)
	go func() { done <- p.Close() }()
	<-p.closing.Done()
	if slot, err := p.Reserve(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Reserve while closing: %v, %v", slot, err)
	}
	select {
	case <-done:
		t.Error("Close doesn't wait for slots in use")
	default:
	}
	b.Release()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := srv.count("QUIT"); n != 2 {
		t.Errorf("%d QUITs, want 2", n)
	}
}

// Close lets go who waits in Reserve, for a connection or for the server.
func TestCloseReleasesWaiters(t *testing.T) {
	srv := startServer(t, script{replies: map[string]string{"greeting": hang}})
	p := newProvider(t, srv, func(c *Config) { c.Connections = 1 })
	errs := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := p.Reserve(context.Background())
			errs <- err
		}()
	}
	<-srv.hanging
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-errs; !errors.Is(err, ErrClosed) {
			t.Errorf("Reserve: %v", err)
		}
	}
}

// A server that accepts connections, and then says nothing, can't be reached:
// DialTimeout is for all steps to a connection that is signed in.
func TestHungDial(t *testing.T) {
	cert, pool := certificate(t, "relay.example")
	for _, step := range []string{"greeting", "EHLO", "STARTTLS", "AUTH"} {
		srv := startServer(t, script{offers: []string{"STARTTLS", "AUTH PLAIN"}, cert: cert, replies: map[string]string{step: hang}})
		p := newProvider(t, srv, func(c *Config) {
			password(t, c, "shop", "s3cret")
			c.RootCAs, c.ServerName, c.DialTimeout = pool, "relay.example", 500*time.Millisecond
		})
		began := time.Now()
		_, err := p.Reserve(t.Context())
		var down *DownError
		if !errors.As(err, &down) || time.Since(began) > 30*time.Second {
			t.Errorf("%s: %v after %v", step, err, time.Since(began))
		}
	}
}

// While the server is away it isn't asked more often than the pauses allow.
func TestOutageIsShared(t *testing.T) {
	srv := startServer(t, script{replies: map[string]string{"greeting": "421 4.3.2 closed"}})
	clock := newClock()
	p := newProvider(t, srv, func(c *Config) { c.Now, c.Connections = clock.Now, 4 })
	var last *DownError
	for range 100 {
		_, err := p.Reserve(t.Context())
		var refusal *Error
		if !errors.As(err, &last) || !errors.As(err, &refusal) || refusal.Code != 421 || refusal.Enhanced != "4.3.2" {
			t.Fatalf("Reserve: %v", err)
		}
	}
	if n := srv.connections(); n != 1 {
		t.Fatalf("%d connections for 100 Reserves, want 1", n)
	}
	for i := 2; i <= 12; i++ {
		pause := last.Until.Sub(clock.Now())
		if longest := min(firstPause<<(i-2), maxPause); pause < longest/2 || pause > longest {
			t.Errorf("pause %d is %v, want from %v to %v", i-1, pause, longest/2, longest)
		}
		clock.add(pause)
		for range 5 {
			if _, err := p.Reserve(t.Context()); !errors.As(err, &last) {
				t.Fatalf("Reserve: %v", err)
			}
		}
		if n := srv.connections(); n != i {
			t.Fatalf("%d connections after %d pauses", n, i-1)
		}
	}
	srv.set(script{offers: everything})
	clock.add(maxPause)
	if r := send(t, p, envelope(1)); r.Outcome != message.Sent {
		t.Errorf("%+v", r)
	}
	if p.outage.failures != 0 {
		t.Errorf("failures: %d", p.outage.failures)
	}
}

// Many dials that fail together are one failure.
func TestOutageCountsOnce(t *testing.T) {
	var o outage
	now := time.Unix(0, 0)
	for range 16 {
		if _, ok, _ := o.enter(now); !ok {
			t.Fatal("refused before any failure")
		}
	}
	for i := range 16 {
		until, began, _ := o.leave(now, errors.New("refused"))
		if began != (i == 0) || until.Sub(now) > firstPause {
			t.Errorf("dial %d: until %v, began %v", i, until, began)
		}
	}
	now = now.Add(firstPause)
	if _, ok, _ := o.enter(now); !ok {
		t.Error("nobody may try after the pause")
	}
	if _, ok, _ := o.enter(now); ok {
		t.Error("two may try at a time")
	}
	o.abandon()
	if _, ok, _ := o.enter(now); !ok {
		t.Error("nobody may try after one gave up")
	}
}

// A server that only refuses more connections is used with those that it allows.
func TestConnectionLimit(t *testing.T) {
	srv := startServer(t, script{offers: everything})
	p := newProvider(t, srv, func(c *Config) { c.Connections = 8 })
	first := reserve(t, p)
	srv.set(script{offers: everything, replies: map[string]string{"greeting": "421 4.7.0 too many connections"}})
	const waiting = 5
	var wg sync.WaitGroup
	for range waiting {
		wg.Go(func() {
			slot, err := p.Reserve(t.Context())
			if err != nil {
				t.Errorf("Reserve: %v", err)
				return
			}
			slot.Release()
		})
	}
	for srv.connections() < 2 {
		time.Sleep(time.Millisecond)
	}
	first.Release()
	wg.Wait()
}

// Who waits is served in the order of arrival.
func TestReserveIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &Provider{
			cfg:     Config{Connections: 1}.withDefaults(),
			permits: make(chan struct{}, 1), idle: make(chan *conn, 1),
		}
		p.closing, p.end = context.WithCancel(context.Background())
		defer p.end()
		client, server := net.Pipe()
		defer server.Close()
		c := newConn(client)
		c.verified = time.Now()
		var order []int
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				slot, err := p.Reserve(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				order = append(order, i) // the one connection is the lock
				slot.Release()
			})
			synctest.Wait()
		}
		p.idle <- c
		wg.Wait()
		for i, n := range order {
			if i != n {
				t.Fatalf("order is %v", order)
			}
		}
	})
}

func TestSweep(t *testing.T) {
	srv := startServer(t, script{offers: everything})
	p := newProvider(t, srv, func(c *Config) { c.IdleTimeout = 20 * time.Millisecond })
	a, b := reserve(t, p), reserve(t, p)
	a.Release()
	b.Release()
	deadline := time.After(20 * time.Second)
	for p.opened.Load() > 0 {
		select {
		case <-deadline:
			t.Fatal("idle connections are kept")
		case <-time.After(5 * time.Millisecond):
		}
	}
	if n := srv.count("QUIT"); n != 2 {
		t.Errorf("%d QUITs, want 2", n)
	}
}

// Slots, connections and permits stay in balance whatever the server does.
func TestPoolUnderChaos(t *testing.T) {
	var calls atomic.Int64
	replies := []string{"", "", "", "", "", "421 bye", "450 later", cut, "garbage", "550 no"}
	srv := startServer(t, script{offers: everything})
	srv.set(script{offers: everything, answer: func(line string) string {
		if strings.HasPrefix(line, "EHLO") {
			return ""
		}
		return replies[calls.Add(1)*7%int64(len(replies))]
	}})
	p := newProvider(t, srv, func(c *Config) { c.Connections, c.MaxPerConnection = 3, 5 })
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			for i := range 50 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				slot, err := p.Reserve(ctx)
				if err == nil {
					slot.Send(ctx, envelope(w*100+i), func() error {
						if i%9 == 0 {
							return errors.New("too old")
						}
						return nil
					})
					slot.Release()
				}
				cancel()
				if n := p.opened.Load(); n > 3 || n < 0 {
					t.Errorf("%d connections", n)
				}
			}
		})
	}
	wg.Wait()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if n := p.opened.Load(); n != 0 || len(p.permits)+len(p.idle) != 0 {
		t.Errorf("after Close: %d open, %d permits, %d idle", n, len(p.permits), len(p.idle))
	}
}

func TestValidate(t *testing.T) {
	good := Config{Name: "relay", Addr: "relay.example:25"}
	if err := good.Validate(); err != nil {
		t.Errorf("the least config: %v", err)
	}
	for field, change := range map[string]func(*Config){
		"name":               func(c *Config) { c.Name = "" },
		"addr":               func(c *Config) { c.Addr = "relay.example" },
		"username":           func(c *Config) { password(t, c, "", "x") },
		"password":           func(c *Config) { c.Username = "u" },
		"auth":               func(c *Config) { password(t, c, "u", "x"); c.Auth = "cram-md5" },
		"tls":                func(c *Config) { c.TLS = "sometimes" },
		"local_name":         func(c *Config) { c.LocalName = "a\r\nMAIL FROM:<x@y>" },
		"connections":        func(c *Config) { c.Connections = -1 },
		"max_per_connection": func(c *Config) { c.MaxPerConnection = -1 },
		"idle_timeout":       func(c *Config) { c.IdleTimeout = -1 },
		"dial_timeout":       func(c *Config) { c.DialTimeout = -1 },
		"command_timeout":    func(c *Config) { c.CommandTimeout = -1 },
		"reply_limit":        func(c *Config) { c.ReplyLimit = time.Millisecond },
		"dkim[0].key":        func(c *Config) { c.DKIM = []DKIMKey{{Domain: "a.example", Selector: "s"}} },
	} {
		c := good
		change(&c)
		var errs message.FieldErrors
		if _, err := New(c); !errors.As(err, &errs) || len(errs) != 1 || errs[0].Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	secret := Config{Name: "relay", Addr: "relay.example:25"}
	password(t, &secret, "u", "s3cret")
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "config", secret)
	if s := fmt.Sprintf("%v %+v %s", secret, secret, &log); strings.Contains(s, "s3cret") {
		t.Errorf("the password is shown: %s", s)
	}
	if s := fmt.Sprint((Config{Addr: "x"}).Validate()); !strings.Contains(s, "name: is required; addr: want HOST:PORT") {
		t.Error(s)
	}
}
