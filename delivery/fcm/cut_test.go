package fcm

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/stormpost/stormpost/internal/message"
)

// wire is a server that speaks by itself on each connection, which it closes
// when serve returns.
type wire struct {
	net.Listener
	tokens server
	roots  *x509.CertPool // nil without TLS
	wg     sync.WaitGroup
}

func startWire(t *testing.T, secure bool, serve func(n int, c net.Conn)) *wire {
	t.Helper()
	w := &wire{}
	w.tokens.start(t, false)
	var err error
	if w.Listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	if secure {
		issuer := httptest.NewUnstartedServer(nil)
		issuer.EnableHTTP2 = true
		issuer.StartTLS()
		w.roots = x509.NewCertPool()
		w.roots.AddCert(issuer.Certificate())
		w.Listener = tls.NewListener(w.Listener, &tls.Config{Certificates: issuer.TLS.Certificates, NextProtos: []string{"h2"}})
		issuer.Close()
	}
	w.wg.Go(func() {
		for n := 1; ; n++ {
			c, err := w.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				serve(n, c)
			})
		}
	})
	t.Cleanup(func() { w.Close(); w.wg.Wait() })
	return w
}

func (w *wire) provider(t *testing.T, change func(*Config)) *Provider {
	t.Helper()
	cfg := Config{Name: "main", Project: "p1", Token: tokens(t, w.tokens.URL+"/token", w.tokens.Client()), BaseURL: "http://" + w.Addr().String(), RootCAs: w.roots}
	if w.roots != nil {
		cfg.BaseURL = "https://" + w.Addr().String()
	}
	p := newProvider(t, cfg, change)
	t.Cleanup(func() { p.Close() }) // before the wire waits for its connections
	return p
}

const (
	okBody    = `{"name":"projects/p1/messages/1"}`
	okHead    = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 33\r\n\r\n"
	chunkHead = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n21\r\n"
)

// A server that takes a request and then breaks off, at each step of HTTP/1.1,
// on a connection's first and on its second request, has seen it once, and
// nobody knows whether it took it.
func TestCutHTTP1(t *testing.T) {
	steps := map[string]string{
		"before the answer":     "",
		"in the status line":    "HTTP/1.1 20",
		"in the headers":        "HTTP/1.1 200 OK\r\nContent-Le",
		"after the headers":     okHead,
		"in the body":           okHead + okBody[:20],
		"before the last byte":  okHead + okBody[:32],
		"in a chunk":            chunkHead + okBody[:20],
		"before the last chunk": chunkHead + okBody + "\r\n",
		"with garbage":          "220 smtp.example ESMTP\r\n",
		"in an error's body":    "HTTP/1.1 400 Bad Request\r\nContent-Length: 300\r\n\r\n" + `{"error":{"status":"INVALID_ARGUMENT"`,
	}
	for name, answer := range steps {
		for _, good := range []int{0, 1} {
			t.Run(name+map[int]string{0: ", fresh", 1: ", reused"}[good], func(t *testing.T) {
				var hits atomic.Int32
				w := startWire(t, false, func(_ int, c net.Conn) {
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
						_, _ = io.WriteString(c, okHead+okBody)
					}
				})
				p := w.provider(t, nil)
				for range good {
					if res := send(t, p); res.Outcome != message.Sent {
						t.Fatalf("the first one: %+v", res)
					}
				}
				if res := send(t, p); res.Outcome != message.Unknown {
					t.Errorf("result %+v", res)
				}
				if n := int(hits.Load()); n != good+1 {
					t.Errorf("%d requests, want %d", n, good+1)
				}
			})
		}
	}
}

func TestNoConnectionTouchesNoMessage(t *testing.T) {
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	var untrusted server
	untrusted.start(t, true)
	for name, base := range map[string]string{
		"refused":       "http://" + gone.Addr().String(),
		"no such host":  "https://fcm.invalid",
		"not trusted":   untrusted.URL,
		"no TLS at all": "https" + untrustedPlain(t),
	} {
		t.Run(name, func(t *testing.T) {
			var tokens server
			tokens.start(t, false)
			p := tokens.provider(t, func(c *Config) { c.BaseURL = base })
			for range 2 { // the second is told at once
				s, err := p.Reserve(t.Context())
				if err == nil {
					s.Release()
					t.Fatal("a slot without a connection")
				}
			}
		})
	}
	if hits, _, conns := untrusted.counts(); hits != 0 || conns != 1 {
		t.Errorf("%d requests, %d connections, want 0 and 1", hits, conns)
	}
}

// untrustedPlain is a plain server's URL without its scheme's name.
func untrustedPlain(t *testing.T) string {
	var s server
	s.start(t, false)
	return s.URL[len("http"):]
}

// An HTTP/2 server breaks off at each step.
func TestCutHTTP2(t *testing.T) {
	steps := map[string]func(w http.ResponseWriter, c net.Conn){
		"reset before the answer": func(http.ResponseWriter, net.Conn) { panic(http.ErrAbortHandler) },
		"reset after the headers": func(w http.ResponseWriter, _ net.Conn) {
			w.WriteHeader(200)
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		},
		"reset in the body": func(w http.ResponseWriter, _ net.Conn) {
			_, _ = io.WriteString(w, `{"name":"projects/p1/mess`)
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		},
		"connection closed": func(_ http.ResponseWriter, c net.Conn) { c.Close() },
	}
	for name, step := range steps {
		for _, good := range []int{0, 1} {
			t.Run(name+map[int]string{0: ", fresh", 1: ", reused"}[good], func(t *testing.T) {
				s := server{reply: func(w http.ResponseWriter, n int, h hit) {
					if n <= good {
						taken(w, n)
						return
					}
					step(w, h.conn)
				}}
				s.start(t, true)
				p := s.provider(t, nil)
				for range good {
					if res := send(t, p); res.Outcome != message.Sent {
						t.Fatalf("the first one: %+v", res)
					}
				}
				if res := send(t, p); res.Outcome != message.Unknown {
					t.Errorf("result %+v", res)
				}
				if hits, _, _ := s.counts(); hits != good+1 {
					t.Errorf("%d requests, want %d", hits, good+1)
				}
			})
		}
	}
}

// refusals is what an HTTP/2 server can say at the level of frames after it
// has read a request, and what that means.
func TestRefusedHTTP2(t *testing.T) {
	tests := map[string]struct {
		answer  func(f *http2.Framer, stream uint32) error
		outcome message.Outcome
	}{
		"REFUSED_STREAM": {func(f *http2.Framer, id uint32) error { return f.WriteRSTStream(id, http2.ErrCodeRefusedStream) }, message.Deferred},
		"INTERNAL_ERROR": {func(f *http2.Framer, id uint32) error { return f.WriteRSTStream(id, http2.ErrCodeInternal) }, message.Unknown},
		"PROTOCOL_ERROR": {func(f *http2.Framer, id uint32) error { return f.WriteRSTStream(id, http2.ErrCodeProtocol) }, message.Unknown},
		"GOAWAY with it": {func(f *http2.Framer, id uint32) error {
			return errors.Join(f.WriteGoAway(id, http2.ErrCodeNo, nil), io.EOF)
		}, message.Unknown},
		// Not processed: so it is tried on one more connection.
		"GOAWAY before it": {func(f *http2.Framer, id uint32) error { return f.WriteGoAway(0, http2.ErrCodeNo, nil) }, message.Deferred},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var hits, conns atomic.Int32
			w := startWire(t, true, func(_ int, c net.Conn) {
				conns.Add(1)
				serveFrames(c, func(f *http2.Framer, stream uint32) error {
					hits.Add(1)
					return tc.answer(f, stream)
				})
			})
			if res := send(t, w.provider(t, nil)); res.Outcome != tc.outcome {
				t.Errorf("result %+v, want %v", res, tc.outcome)
			}
			tries := int32(1)
			if name == "GOAWAY before it" {
				tries = 2
			}
			if hits.Load() != tries || conns.Load() != tries {
				t.Errorf("%d requests over %d connections, want %d", hits.Load(), conns.Load(), tries)
			}
		})
	}
}

// serveFrames reads requests and has answer answer each that is whole, until
// the client hangs up or answer fails.
func serveFrames(c net.Conn, answer func(f *http2.Framer, stream uint32) error) {
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(c, preface); err != nil {
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
			if !frame.IsAck() && f.WriteSettingsAck() != nil {
				return
			}
		case *http2.DataFrame:
			if frame.StreamEnded() && answer(f, frame.StreamID) != nil {
				return
			}
		}
	}
}

// A server that goes away in an orderly manner, between requests, costs
// nothing: a connection that was told so takes no more messages.
func TestGoAwayBetweenRequests(t *testing.T) {
	var hits, conns atomic.Int32
	w := startWire(t, true, func(_ int, c net.Conn) {
		conns.Add(1)
		serveFrames(c, func(f *http2.Framer, stream uint32) error {
			hits.Add(1)
			return errors.Join(f.WriteGoAway(stream, http2.ErrCodeNo, nil), writeOK(f, stream))
		})
	})
	p := w.provider(t, nil)
	for i := range 5 {
		if res := send(t, p); res.Outcome != message.Sent {
			t.Fatalf("message %d: %+v", i, res)
		}
	}
	if hits.Load() != 5 || conns.Load() != 5 {
		t.Errorf("%d requests over %d connections, want 5 over 5", hits.Load(), conns.Load())
	}
}

func writeOK(f *http2.Framer, stream uint32) error {
	var block bytes.Buffer
	if err := hpack.NewEncoder(&block).WriteField(hpack.HeaderField{Name: ":status", Value: "200"}); err != nil {
		return err
	}
	return errors.Join(
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true}),
		f.WriteData(stream, true, []byte(okBody)))
}
