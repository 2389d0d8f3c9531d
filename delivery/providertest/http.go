package providertest

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
)

// HTTP is a provider under test whose hand-over is one HTTP request.
type HTTP struct {
	// New makes a provider of the service that o describes.
	New func(t *testing.T, o HTTPService) delivery.Provider
	// Envelope is the nth message, n from 0.
	Envelope func(n int) *message.Envelope
	// Number reads of which message a request is, and fails if it is not as the
	// vendor documents it. It is called by several goroutines.
	Number func(r *http.Request, body []byte) (int, error)
	// Taken is how the service says that it took a message; Defer and Reject are
	// two of its refusals.
	Taken, Defer, Reject HTTPAnswer
	// Garbage is an answer that means nothing; by default a 200 with a body that
	// nobody would send.
	Garbage HTTPAnswer
	// Answers is every documented status, and what stands for the rest.
	Answers []HTTPCase
	// HTTP2 leaves HTTP/1.1 out, for who doesn't speak it.
	HTTP2 bool
	// Lacks lists further faults that the protocol has no place for.
	Lacks []Fault
	// Secret must never be shown. It is repeated in answers that are text.
	Secret string
}

// HTTPService is where a service is, and how much of it to use.
type HTTPService struct {
	Base        string // without a trailing slash
	Roots       *x509.CertPool
	Concurrency int
	ReplyLimit  time.Duration
}

// HTTPAnswer is a response.
type HTTPAnswer struct {
	Status int
	Header http.Header
	Body   string
}

func (a HTTPAnswer) write(w http.ResponseWriter) {
	for name, values := range a.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(a.Status)
	_, _ = io.WriteString(w, a.Body)
}

// HTTPCase is an answer and what it means.
type HTTPCase struct {
	HTTPAnswer
	Outcome    message.Outcome
	Code       string        // if it isn't empty
	RetryAfter time.Duration // if it isn't zero
}

// RunHTTP checks h: the contract of every provider over HTTP/1.1 and over
// HTTP/2 with TLS, every answer, and a cut at every step.
func RunHTTP(t *testing.T, h HTTP) {
	for name, secure := range map[string]bool{"HTTP1": false, "HTTP2": true} {
		if h.HTTP2 && !secure {
			continue
		}
		t.Run(name, func(t *testing.T) {
			// Nothing is answered between the connection and the request.
			lacks := append([]Fault{EarlyDefer, EarlyCut, EarlyHang}, h.Lacks...)
			if !secure {
				lacks = append(lacks, Down) // there is no handshake that could fail
			}
			Run(t, Subject{
				Start: func(t *testing.T, concurrency int) (delivery.Provider, Server) {
					s := h.serve(t, secure)
					return h.New(t, s.service(concurrency)), s
				},
				Envelope: h.Envelope,
				Lacks:    lacks,
			})
			t.Run("Answers", func(t *testing.T) { h.answers(t, secure) })
			t.Run("Cuts", func(t *testing.T) { h.cuts(t, secure) })
		})
	}
}

// httpServer is h's service, as the suite drives it.
type httpServer struct {
	*httptest.Server
	h       HTTP
	t       *testing.T
	hanging chan struct{}
	release chan struct{}
	once    sync.Once

	mu     sync.Mutex
	fault  Fault
	answer *HTTPAnswer // instead of Taken
	step   func(w http.ResponseWriter, c net.Conn)
	early  func(c net.Conn) // before a request's body is read
	got    []int
}

type connKey struct{}

func (h HTTP) serve(t *testing.T, secure bool) *httpServer {
	s := &httpServer{h: h, t: t, hanging: make(chan struct{}), release: make(chan struct{})}
	s.Server = httptest.NewUnstartedServer(s)
	s.Listener = downListener{s.Listener, s}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	s.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) }
	if secure {
		s.EnableHTTP2 = true
		s.StartTLS()
	} else {
		s.Start()
	}
	return s
}

func (s *httpServer) service(concurrency int) HTTPService {
	o := HTTPService{Base: s.URL, Concurrency: concurrency, ReplyLimit: patience}
	if c := s.Certificate(); c != nil {
		o.Roots = x509.NewCertPool()
		o.Roots.AddCert(c)
	}
	return o
}

// downListener hangs up at once while the server is down.
type downListener struct {
	net.Listener
	s *httpServer
}

func (l downListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil || l.s.current() != Down {
			return c, err
		}
		c.Close()
	}
}

func (s *httpServer) Misbehave(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

func (s *httpServer) current() Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fault
}

func (s *httpServer) Got() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got)
}

func (s *httpServer) Hanging() <-chan struct{} { return s.hanging }

func (s *httpServer) Close() {
	s.once.Do(func() { close(s.release) })
	s.Server.Close()
}

func (s *httpServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	early := s.early
	s.mu.Unlock()
	if early != nil {
		early(r.Context().Value(connKey{}).(net.Conn))
		panic(http.ErrAbortHandler)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	n, err := s.h.Number(r, body)
	if err != nil {
		s.t.Errorf("request: %v", err)
		w.WriteHeader(http.StatusTeapot)
		return
	}
	s.mu.Lock()
	s.got = append(s.got, n)
	answer, step := s.h.Taken, s.step
	if s.answer != nil {
		answer = *s.answer
	}
	s.mu.Unlock()
	if step != nil {
		step(w, r.Context().Value(connKey{}).(net.Conn))
		return
	}
	switch s.current() {
	case Defer:
		answer = s.h.Defer
	case Reject:
		answer = s.h.Reject
	case Cut:
		panic(http.ErrAbortHandler)
	case Garbage:
		answer = s.h.Garbage
		if answer.Status == 0 {
			answer = HTTPAnswer{Status: http.StatusOK, Body: "220 smtp.example ESMTP " + s.h.Secret}
		}
	case Hang:
		select {
		case s.hanging <- struct{}{}:
		case <-s.release:
		}
		<-s.release
	}
	answer.write(w)
}

// answers hands one message over for each answer: it makes one request, and the
// outcome that the table says.
func (h HTTP) answers(t *testing.T, secure bool) {
	s := h.serve(t, secure)
	defer s.Close()
	for n, c := range h.Answers {
		what := fmt.Sprintf("%d %.90s", c.Status, c.Body)
		a := c.HTTPAnswer
		a.Body = strings.ReplaceAll(a.Body, "$SECRET", h.Secret)
		s.mu.Lock()
		s.answer = &a
		s.mu.Unlock()
		p := h.New(t, s.service(1)) // of its own, since an answer may be about the credential
		r := h.send(t, p, n)
		p.Close()
		if r.Outcome != c.Outcome || c.Code != "" && r.Code != c.Code || c.RetryAfter != 0 && r.RetryAfter != c.RetryAfter {
			t.Errorf("%s: %v %s, wait %v; want %v %s %v", what, r.Outcome, r.Code, r.RetryAfter, c.Outcome, c.Code, c.RetryAfter)
		}
		if got := len(s.Got()); got != n+1 {
			t.Fatalf("%s: %d requests for one message", what, got-n)
		}
	}
}

// send hands message n over.
func (h HTTP) send(t *testing.T, p delivery.Provider, n int) message.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	slot, err := p.Reserve(ctx)
	if err != nil {
		t.Fatalf("Reserve: %v", err)
	}
	defer slot.Release()
	r := slot.Send(ctx, h.Envelope(n), func() error { return nil })
	if text := fmt.Sprintf("%+v", r); h.Secret != "" && strings.Contains(text, h.Secret) {
		t.Errorf("the result shows a secret: %s", text)
	}
	return r
}

// Keyed is a provider that closes its credential with it, as the suite looks for
// goroutines after that.
type Keyed struct {
	delivery.Provider
	Key *credential.Credential
}

// Close closes both.
func (k Keyed) Close() error {
	k.Key.Close()
	return k.Provider.Close()
}

// FixedKey is a credential of one value.
func FixedKey(value string) *credential.Credential {
	return credential.New(credential.Config{Name: "test", Source: credential.Fixed("test", value)})
}

// Answered is the case of a status and body; $SECRET in body stands for
// HTTP.Secret.
func Answered(status int, body string, o message.Outcome, code string) HTTPCase {
	return HTTPCase{HTTPAnswer: HTTPAnswer{Status: status, Body: body}, Outcome: o, Code: code}
}

// ServeHTTP2 serves whole requests over HTTP/2 with TLS until the test ends.
func ServeHTTP2(t *testing.T, serve func(w http.ResponseWriter, r *http.Request, body []byte)) HTTPService {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		serve(w, r, body)
	}))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	o := HTTPService{Base: s.URL, Concurrency: 4, ReplyLimit: patience, Roots: x509.NewCertPool()}
	o.Roots.AddCert(s.Certificate())
	return o
}
