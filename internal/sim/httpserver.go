package sim

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

const (
	httpReadTimeout = 30 * time.Second
	httpIdleTimeout = 5 * time.Minute
)

// httpServer is an HTTP/1.1 and HTTP/2 server, the latter also without TLS,
// that can misbehave and whose Close waits for all of its goroutines.
type httpServer struct {
	*Faults
	gate   *gate
	server *http.Server
	tls    bool
	conns  sync.WaitGroup // and the accept loop

	mu       sync.Mutex
	closing  bool
	handlers sync.WaitGroup // Add only under mu while not closing
}

// serveHTTP listens on addr and serves h, over TLS if cert is given; without
// faults it always behaves. h finds its connection with connOf.
func serveHTTP(ctx context.Context, addr string, cert *certificate, faults *Faults, h http.Handler, log *slog.Logger) (*httpServer, error) {
	g, err := listen(ctx, addr)
	if err != nil {
		return nil, err
	}
	if faults == nil {
		faults = new(Faults)
	}
	s := &httpServer{Faults: faults, gate: g, tls: cert != nil}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	s.server = &http.Server{
		Handler:           s.tracked(h),
		Protocols:         &protocols,
		ReadHeaderTimeout: httpReadTimeout,
		IdleTimeout:       httpIdleTimeout,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return g.ctx },
		ConnContext:       withConn,
		ConnState:         s.connState,
	}
	s.conns.Go(func() {
		l := httpListener{s}
		if cert != nil {
			s.server.TLSConfig = cert.tls.Clone()
			err = s.server.ServeTLS(l, "", "")
		} else {
			err = s.server.Serve(l)
		}
		if !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			log.Error("HTTP simulator stopped", "error", err)
		}
	})
	return s, nil
}

// tracked counts requests in progress: an HTTP/2 handler may outlive its
// connection.
func (s *httpServer) tracked(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		if s.closing {
			s.mu.Unlock()
			panic(http.ErrAbortHandler)
		}
		s.handlers.Add(1)
		s.mu.Unlock()
		defer s.handlers.Done()
		h.ServeHTTP(w, r)
	})
}

// connState counts connections. The accept loop calls it for new ones, so that
// none is added once that has ended.
func (s *httpServer) connState(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.conns.Add(1)
	case http.StateClosed, http.StateHijacked:
		s.conns.Done()
	}
}

// Addr is host:port.
func (s *httpServer) Addr() string { return s.gate.Addr().String() }

// URL is the base URL, without a trailing slash.
func (s *httpServer) URL() string {
	if s.tls {
		return "https://" + s.Addr()
	}
	return "http://" + s.Addr()
}

// Close ends all connections and waits for what was in progress.
func (s *httpServer) Close() error {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	err := s.gate.Close()
	if e := s.server.Close(); e != nil && !errors.Is(e, net.ErrClosed) {
		err = errors.Join(err, e)
	}
	s.conns.Wait()
	s.handlers.Wait()
	return err
}

type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	return context.WithValue(ctx, connKey{}, c)
}

// connOf is the connection that r came by.
func connOf(r *http.Request) *gatedConn { return r.Context().Value(connKey{}).(*gatedConn) }

// httpListener gives every connection its StepConnect.
type httpListener struct{ s *httpServer }

func (l httpListener) Accept() (net.Conn, error) {
	c, err := l.s.gate.accept()
	if err != nil {
		return nil, err
	}
	// Not here, since that would hold up the next connection.
	c.first = func() error { return l.s.connectFault(c) }
	return c, nil
}

func (l httpListener) Close() error   { return l.s.gate.Close() }
func (l httpListener) Addr() net.Addr { return l.s.gate.Addr() }

func (s *httpServer) connectFault(c *gatedConn) error {
	ev := Event{Step: StepConnect, Conn: c.number, Peer: c.RemoteAddr()}
	x, ok := s.take(ev)
	if !ok {
		return nil
	}
	if err := x.start(s.gate.ctx, ev); err != nil {
		return err
	}
	var err error
	switch x.Do {
	case Slow:
		return nil
	case Hang:
		if err = c.SetDeadline(time.Time{}); err == nil {
			_, err = io.Copy(io.Discard, c.Conn)
		}
	case Garbage:
		_, err = c.Write(garbage)
	case Reset:
		err = c.reset()
	}
	return errors.Join(errors.New("dropped"), err, c.Close())
}

// checkHTTPFault refuses what can't be done over HTTP. documented tells the
// errors that Answer knows a status for.
func checkHTTPFault(documented func(code string) bool) func(*Fault) error {
	return func(x *Fault) error {
		switch {
		case x.Step == StepConnect && (x.Do == Answer || x.Do == Partial || x.Do == Garbage && x.Code != 0):
			return errors.New("step connect: nothing was asked yet that could be answered")
		case x.Do == Answer && x.Code == 0 && !documented(x.Error):
			return errors.New("do answer: want a code, or a documented error")
		case x.Do == Answer && x.Code != 0 && x.Code < 400:
			return errors.New("do answer: want a code of 400 to 599")
		}
		return nil
	}
}

var garbage = []byte("\x00\xfe\xff this is no answer\r\n")

// fault lets a step of request r misbehave; for Answer it calls answer. It
// returns false when the server shall go on as usual. An ended connection takes
// all of its HTTP/2 streams along.
func (s *httpServer) fault(w http.ResponseWriter, r *http.Request, ev Event, did *[]string, answer func(*Fault)) bool {
	c := connOf(r)
	ev.Conn, ev.Peer = c.number, c.RemoteAddr()
	x, ok := s.take(ev)
	if !ok {
		return false
	}
	*did = append(*did, x.String())
	// Not r's context: a provider works on after its client has given up.
	if x.start(s.gate.ctx, ev) != nil {
		panic(http.ErrAbortHandler)
	}
	var err error
	switch x.Do {
	case Slow:
		return false
	case Answer:
		if x.RetryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int((x.RetryAfter+time.Second-1)/time.Second)))
		}
		answer(&x)
		return true
	case Hang:
		// With all of the body read, net/http notices when the client goes.
		_, err = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	case Partial:
		w.Header().Set("Content-Type", "application/json; charset=UTF-8")
		w.Header().Set("Content-Length", "100")
		_, err = io.WriteString(w, `{"name": "proj`)
		err = errors.Join(err, http.NewResponseController(w).Flush())
	case Garbage:
		if x.Code != 0 {
			w.Header().Set("Content-Type", "text/html; charset=UTF-8")
			w.WriteHeader(x.Code)
			_, _ = io.WriteString(w, "<!DOCTYPE html><title>Error</title><p>That's all we know.\n")
			return true
		}
		_, err = c.Conn.Write(garbage)
	case Reset:
		err = c.reset()
	}
	if err = errors.Join(err, c.Close()); err != nil && !errors.Is(err, net.ErrClosed) {
		s.server.ErrorLog.Printf("fault %v: %v", &x, err)
	}
	panic(http.ErrAbortHandler)
}

// readBody reads all of r's body, in time and up to limit bytes.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	rc := http.NewResponseController(w)
	if err := rc.SetReadDeadline(time.Now().Add(httpReadTimeout)); err != nil {
		return nil, err
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		return nil, err
	}
	return body, rc.SetReadDeadline(time.Time{})
}
