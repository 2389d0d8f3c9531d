package overhttp

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/stormpost/stormpost/internal/message"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start has serve speak by itself on each connection, which is closed when it
// returns, and makes a client of it.
func start(t *testing.T, secure bool, change func(*Config), serve func(n int, c net.Conn)) *Client {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Base: &url.URL{Scheme: "http", Host: l.Addr().String()}, Concurrency: 2, ReplyLimit: 10 * time.Second}
	if secure {
		issuer := httptest.NewUnstartedServer(nil)
		issuer.EnableHTTP2 = true
		issuer.StartTLS()
		cfg.Base.Scheme, cfg.RootCAs = "https", x509.NewCertPool()
		cfg.RootCAs.AddCert(issuer.Certificate())
		l = tls.NewListener(l, &tls.Config{Certificates: issuer.TLS.Certificates, NextProtos: []string{"h2"}})
		issuer.Close()
	}
	if change != nil {
		change(&cfg)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 1; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				serve(n, c)
			})
		}
	})
	client := New(cfg)
	t.Cleanup(func() { client.Close(); l.Close(); wg.Wait() })
	return client
}

// answering reads requests and writes answer to each, over HTTP/2 or 1.1. An
// empty answer is silence until the client hangs up.
func answering(c net.Conn, secure bool, hits *atomic.Int32, answer string) {
	if secure {
		answerFrames(c, hits, answer)
		return
	}
	in := bufio.NewReader(c)
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, req.Body)
		hits.Add(1)
		if answer == "" {
			_, _ = in.ReadByte()
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 "+answer+" X\r\nContent-Length: 0\r\n\r\n")
	}
}

func answerFrames(c net.Conn, hits *atomic.Int32, answer string) {
	if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	f := http2.NewFramer(c, c)
	if f.WriteSettings() != nil {
		return
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = f.WriteSettingsAck()
			}
		case *http2.DataFrame:
			if !frame.StreamEnded() {
				continue
			}
			hits.Add(1)
			if answer == "" {
				continue
			}
			var block bytes.Buffer
			_ = hpack.NewEncoder(&block).WriteField(hpack.HeaderField{Name: ":status", Value: answer})
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: frame.StreamID, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
		}
	}
}

// request is taken by 200, and refused for its credential by 401.
func request(c *Client) Request {
	return Request{
		URL: Join(c.cfg.Base, "send"), Header: http.Header{"Authorization": {"CANARY"}, "Idempotency-Key": {"m1"}}, Body: []byte("content"),
		Judge: func(a Answer) (message.Result, bool) {
			switch a.Status {
			case 200:
				return message.Result{Outcome: message.Sent}, false
			case 401:
				return message.Result{Outcome: message.Deferred}, true
			}
			return message.Result{Outcome: message.Unknown}, false
		},
	}
}

func post(t *testing.T, c *Client, change func(*Request)) (res message.Result, lasts int) {
	t.Helper()
	p, err := c.Reserve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	req := request(c)
	if change != nil {
		change(&req)
	}
	res = p.Post(t.Context(), req, func() error { lasts++; return nil })
	return res, lasts
}

func protocols(t *testing.T, f func(t *testing.T, secure bool)) {
	t.Run("HTTP1", func(t *testing.T) { f(t, false) })
	t.Run("HTTP2", func(t *testing.T) { f(t, true) })
}

func waitClosed(t *testing.T, c *conn) {
	t.Helper()
	closed := make(chan struct{})
	var once sync.Once
	c.SetStateHook(func(cc *http.ClientConn) {
		if cc.Err() != nil {
			once.Do(func() { close(closed) })
		}
	})
	if c.Err() != nil {
		return
	}
	select {
	case <-closed:
	case <-time.After(5 * time.Second):
		t.Fatal("the connection is still open")
	}
}

// Without TLS there is no handshake by which a dead server shows before the
// claim: one that hangs up at once is tried once more and then given up,
// certain that nothing was taken.
func TestCutBeforeTheRequest(t *testing.T) {
	var conns atomic.Int32
	c := start(t, false, nil, func(int, net.Conn) { conns.Add(1) })
	p, err := c.Reserve(t.Context())
	if err != nil {
		return // seen already: no message touched
	}
	defer p.Release()
	waitClosed(t, p.conn)
	lasts := 0
	res := p.Post(t.Context(), request(c), func() error { lasts++; return nil })
	if lasts != 1 || res.Outcome == message.Sent || res.Outcome == message.Rejected {
		t.Errorf("result %+v, last called %d times", res, lasts)
	}
	if n := conns.Load(); n > 2 {
		t.Errorf("%d connections for one message", n)
	}
}

// The connection that Reserve found may be gone when Post begins: the message
// goes over another, since nothing of it had left.
func TestConnectionGoneBeforePost(t *testing.T) {
	protocols(t, func(t *testing.T, secure bool) {
		cut := make(chan struct{})
		var hits atomic.Int32
		c := start(t, secure, nil, func(n int, c net.Conn) {
			if tc, ok := c.(*tls.Conn); ok && tc.Handshake() != nil {
				return
			}
			if n == 1 {
				<-cut
				return
			}
			answering(c, secure, &hits, "200")
		})
		p, err := c.Reserve(t.Context())
		close(cut)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Release()
		waitClosed(t, p.conn)
		lasts := 0
		res := p.Post(t.Context(), request(c), func() error { lasts++; return nil })
		if res.Outcome != message.Sent || hits.Load() != 1 || lasts != 1 {
			t.Errorf("result %+v, %d requests, last called %d times", res, hits.Load(), lasts)
		}
	})
}

// No answer in time: nobody knows. The connection may be dead, so it is closed
// and takes no more messages.
func TestNoAnswerInTime(t *testing.T) {
	protocols(t, func(t *testing.T, secure bool) {
		var hits atomic.Int32
		c := start(t, secure, func(c *Config) { c.ReplyLimit = 200 * time.Millisecond }, func(_ int, c net.Conn) { answering(c, secure, &hits, "") })
		p, err := c.Reserve(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		first := p.conn
		res := p.Post(t.Context(), request(c), func() error { return nil })
		p.Release()
		if res.Outcome != message.Unknown || hits.Load() != 1 {
			t.Errorf("result %+v after %d requests", res, hits.Load())
		}
		waitClosed(t, first)
	})
}

// net/http's transport repeats a request with an Idempotency-Key by itself when
// a used connection dies; this must not.
func TestNothingRepeatsByItself(t *testing.T) {
	var hits atomic.Int32
	c := start(t, false, nil, func(_ int, c net.Conn) {
		in := bufio.NewReader(c)
		for good := true; ; good = false {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			hits.Add(1)
			if !good {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	if res, _ := post(t, c, nil); res.Outcome != message.Sent {
		t.Fatalf("the first one: %+v", res)
	}
	if res, lasts := post(t, c, nil); res.Outcome != message.Unknown || lasts != 1 || hits.Load() != 2 {
		t.Errorf("result %+v, %d requests, last called %d times", res, hits.Load(), lasts)
	}
}

// A refused credential is renewed once, and costs one more request at most.
func TestRenew(t *testing.T) {
	for name, tc := range map[string]struct {
		renew func(context.Context) (http.Header, error)
		hits  int32
	}{
		"renewed":    {func(context.Context) (http.Header, error) { return http.Header{"Authorization": {"NEW"}}, nil }, 2},
		"none now":   {func(context.Context) (http.Header, error) { return nil, errors.New("no token") }, 1},
		"none there": {nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var hits atomic.Int32
			c := start(t, false, nil, func(_ int, c net.Conn) { answering(c, false, &hits, "401") })
			res, lasts := post(t, c, func(r *Request) { r.Renew = tc.renew })
			if res.Outcome != message.Returned || lasts != 1 || hits.Load() != tc.hits {
				t.Errorf("result %+v, %d requests, last called %d times", res, hits.Load(), lasts)
			}
		})
	}
}

// Control sees the address that a name resolved to, before anything is sent.
func TestControl(t *testing.T) {
	var hits atomic.Int32
	var asked string
	c := start(t, false, func(c *Config) {
		c.Base.Host = "localhost:" + c.Base.Port()
		c.Control = func(_, address string, _ syscall.RawConn) error {
			asked = address
			return errors.New("not there")
		}
	}, func(_ int, c net.Conn) { answering(c, false, &hits, "200") })
	p, err := c.Reserve(t.Context())
	if err == nil {
		p.Release()
		t.Fatal("connected all the same")
	}
	if host, _, err := net.SplitHostPort(asked); err != nil || net.ParseIP(host) == nil {
		t.Errorf("asked for %q", asked)
	}
}

func TestIdleConnectionIsNotTrusted(t *testing.T) {
	protocols(t, func(t *testing.T, secure bool) {
		var hits, conns atomic.Int32
		now := time.Now()
		c := start(t, secure, func(c *Config) { c.Now = func() time.Time { return now } }, func(_ int, c net.Conn) {
			conns.Add(1)
			answering(c, secure, &hits, "200")
		})
		for i, pause := range []time.Duration{0, idleLimit, idleLimit + 1} {
			now = now.Add(pause)
			before := conns.Load()
			if res, _ := post(t, c, nil); res.Outcome != message.Sent {
				t.Errorf("result %+v", res)
			}
			if after := conns.Load(); i > 0 && (after > before) != (pause > idleLimit) {
				t.Errorf("after %v: %d new connections", pause, after-before)
			}
		}
	})
}
