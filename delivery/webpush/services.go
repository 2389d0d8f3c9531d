package webpush

import (
	"context"
	"errors"
	"net/url"
	"sync"
	"syscall"
	"time"

	"github.com/stormpost/stormpost/internal/overhttp"
)

const (
	// maxServices bounds the push services spoken to at a time. Browsers have
	// four or so; what else subscriptions name is somebody's invention.
	maxServices = 64
	// serviceIdle is after how long a service that nobody uses is let go.
	serviceIdle = 5 * time.Minute
)

var (
	errManyServices = errors.New("too many push services at a time")
	errClosed       = errors.New("the provider is closed")
)

// services is the push services that messages go to, a client for each.
type services struct {
	cfg *settings

	mu     sync.Mutex
	open   map[string]*service // by origin
	closed bool
}

type service struct {
	*overhttp.Client
	users    int
	lastUsed time.Time
}

// get is the service of an endpoint. put must follow.
func (s *services) get(u *url.URL) (*service, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosed
	}
	key := origin(u)
	found := s.open[key]
	if found == nil {
		if !s.makeRoom() {
			return nil, errManyServices
		}
		c := overhttp.Config{
			Base: u, Concurrency: s.cfg.perService(), MaxConns: s.cfg.Connections,
			ReplyLimit: s.cfg.ReplyLimit, RootCAs: s.cfg.RootCAs, Control: overhttp.OnlyPublic, Now: s.cfg.Now,
		}
		if s.cfg.AllowPrivate {
			c.Control = func(string, string, syscall.RawConn) error { return nil }
		}
		found = &service{Client: overhttp.New(c)}
		s.open[key] = found
	}
	found.users++
	return found, nil
}

func (s *services) put(v *service) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v.users--
	v.lastUsed = s.cfg.Now()
}

// makeRoom lets services go that were not used for long, and if there are too
// many the one that was not used for longest.
func (s *services) makeRoom() bool {
	now := s.cfg.Now()
	var oldest string
	for key, v := range s.open {
		switch {
		case v.users > 0:
		case now.Sub(v.lastUsed) > serviceIdle:
			v.Close()
			delete(s.open, key)
		case oldest == "" || v.lastUsed.Before(s.open[oldest].lastUsed):
			oldest = key
		}
	}
	if len(s.open) < maxServices {
		return true
	}
	if oldest == "" {
		return false
	}
	s.open[oldest].Close()
	delete(s.open, oldest)
	return true
}

// place waits for a connection to the service, but not for long: its slot may
// be wanted for another service.
func (v *service) place(ctx context.Context) (*overhttp.Place, error) {
	ctx, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	return v.Reserve(ctx)
}

func (s *services) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, v := range s.open {
		v.Close()
		delete(s.open, key)
	}
	s.closed = true
}
