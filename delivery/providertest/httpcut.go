package providertest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// cuts has a server take a request and then break off, at each step, on a
// connection's first and on its second request. It has seen the message once,
// and nobody knows whether it took it.
func (h HTTP) cuts(t *testing.T, secure bool) {
	if !secure {
		h.cutEarly(t)
	}
	for _, good := range []int{0, 1} {
		t.Run(map[int]string{0: "fresh", 1: "reused"}[good], func(t *testing.T) {
			if secure {
				h.cutStreams(t, good)
			} else {
				h.cutConns(t, good)
			}
		})
	}
}

// plain is a as HTTP/1.1 sends it, in its head and body.
func (a HTTPAnswer) plain(extra string) (head, body string) {
	head = fmt.Sprintf("HTTP/1.1 %d X\r\n%s", a.Status, extra)
	for name, values := range a.Header {
		for _, v := range values {
			head += name + ": " + v + "\r\n"
		}
	}
	return head + "\r\n", a.Body
}

func (h HTTP) cutConns(t *testing.T, good int) {
	head, body := h.Taken.plain(fmt.Sprintf("Content-Length: %d\r\n", len(h.Taken.Body)))
	chunked, _ := h.Taken.plain("Transfer-Encoding: chunked\r\n")
	longer, _ := h.Taken.plain(fmt.Sprintf("Content-Length: %d\r\n", len(h.Taken.Body)+1))
	refused, _ := h.Reject.plain(fmt.Sprintf("Content-Length: %d\r\n", len(h.Reject.Body)+300))
	steps := map[string]string{
		"before the answer":    "",
		"in the status line":   "HTTP/1.1 20",
		"in the headers":       head[:len(head)-8],
		"before the last byte": longer + body,
		"in a chunk":           chunked + "ff\r\n" + body,
		"with garbage":         "220 smtp.example ESMTP\r\n",
	}
	if body != "" {
		steps["after the headers"] = head
		steps["in the body"] = head + body[:len(body)/2]
		steps["before the last chunk"] = chunked + fmt.Sprintf("%x\r\n", len(body)) + body + "\r\n"
	}
	if h.Reject.Body != "" {
		steps["in a refusal's body"] = refused + h.Reject.Body[:len(h.Reject.Body)/2]
	}
	for name, answer := range steps {
		t.Run(name, func(t *testing.T) {
			var hits atomic.Int32
			base := startRaw(t, func(c net.Conn) {
				in := bufio.NewReader(c)
				for n := 0; ; n++ {
					req, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					if _, err := io.Copy(io.Discard, req.Body); err != nil {
						return
					}
					hits.Add(1)
					if n == good {
						_, _ = io.WriteString(c, answer)
						return
					}
					_, _ = io.WriteString(c, head+body)
				}
			})
			p := h.New(t, HTTPService{Base: base, Concurrency: 1, ReplyLimit: patience})
			defer p.Close()
			for n := range good {
				if r := h.send(t, p, n); r.Outcome != message.Sent {
					t.Fatalf("the first one: %+v", r)
				}
			}
			r := h.send(t, p, good)
			want := message.Unknown
			if name == "in a refusal's body" && r.Outcome.NotTaken() {
				want = r.Outcome // by its status alone: certainly not taken, but not for ever either
			}
			if r.Outcome != want {
				t.Errorf("result %+v, want %v", r, want)
			}
			if n := int(hits.Load()); n != good+1 {
				t.Errorf("%d requests, want %d", n, good+1)
			}
		})
	}
}

// startRaw has serve speak by itself on each connection, which is closed when
// it returns.
func startRaw(t *testing.T, serve func(c net.Conn)) (base string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				serve(c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return "http://" + l.Addr().String()
}

// cutEarly has a server break off before it has read a request: on connecting,
// when it may not have begun, and after its first byte, when it has.
func (h HTTP) cutEarly(t *testing.T) {
	for name, read := range map[string]int{"on connecting": 0, "in the request": 1} {
		t.Run(name, func(t *testing.T) {
			var conns atomic.Int32
			base := startRaw(t, func(c net.Conn) {
				conns.Add(1)
				_, _ = io.ReadFull(c, make([]byte, read))
			})
			p := h.New(t, HTTPService{Base: base, Concurrency: 1, ReplyLimit: patience})
			defer p.Close()
			if read == 0 {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				slot, err := p.Reserve(ctx)
				if err != nil { // nothing was claimed yet
					return
				}
				slot.Release()
			}
			if r := h.send(t, p, 0); r.Outcome != message.Unknown && (read > 0 || !r.Outcome.NotTaken()) {
				t.Errorf("result %+v", r)
			}
			if n := conns.Load(); read > 0 && n != 1 {
				t.Errorf("it was asked %d times", n)
			}
		})
	}
}

func (h HTTP) cutStreams(t *testing.T, good int) {
	abort := func() { panic(http.ErrAbortHandler) }
	flush := func(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() }
	for name, step := range map[string]func(w http.ResponseWriter, c net.Conn){
		"reset before the answer": func(http.ResponseWriter, net.Conn) { abort() },
		"reset after the headers": func(w http.ResponseWriter, _ net.Conn) {
			w.WriteHeader(h.Taken.Status)
			flush(w)
			abort()
		},
		"reset in the body": func(w http.ResponseWriter, _ net.Conn) {
			h.Taken.write(w)
			flush(w)
			abort()
		},
		"connection closed":                func(_ http.ResponseWriter, c net.Conn) { c.Close() },
		"connection closed in the request": nil,
	} {
		t.Run(name, func(t *testing.T) {
			s := h.serve(t, true)
			defer s.Close()
			seen := good + 1
			p := h.New(t, s.service(1))
			defer p.Close()
			for n := range good {
				if r := h.send(t, p, n); r.Outcome != message.Sent {
					t.Fatalf("the first one: %+v", r)
				}
			}
			s.mu.Lock()
			if s.step = step; step == nil {
				seen, s.early = good, func(c net.Conn) { c.Close() }
			}
			s.mu.Unlock()
			if r := h.send(t, p, good); r.Outcome != message.Unknown {
				t.Errorf("result %+v", r)
			}
			if n := len(s.Got()); n != seen {
				t.Errorf("%d requests, want %d", n, seen)
			}
		})
	}
}
