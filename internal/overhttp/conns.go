package overhttp

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	dialTimeout = 10 * time.Second // TCP and TLS
	// dialPause is how long after a failed dial the next ones fail at once.
	dialPause = time.Second
	// idleLimit is how long a connection may lie unused. Later, something on
	// the way may have forgotten it, and the next request would be a doubt.
	idleLimit = 30 * time.Second
)

var errConnsClosed = errors.New("the provider is closed")

// conns is the connections to the service. Each is used up to what it allows: one
// request with HTTP/1.1, as many streams as the server grants with HTTP/2.
type conns struct {
	transport    *http.Transport
	scheme, addr string
	now          func() time.Time
	max          int // 0: no bound

	turn chan struct{} // holds a value while somebody dials, or waits for room
	room chan struct{} // tells whoever has the turn to look again

	mu      sync.Mutex
	open    []*conn
	age     int // of the connections that are dialled now; see renew
	closed  bool
	failure error // of the last dial, until pauseTo
	pauseTo time.Time
}

// conn is one connection. Its fields are guarded by conns.mu.
type conn struct {
	*http.ClientConn
	users    int // places held, from reserve to free
	age      int
	lastUsed time.Time
	retired  bool // takes no more requests; closed when the last user is done
}

// reserve holds a place on a connection for one RoundTrip, or for Release.
// Either must be followed by free. It dials if no connection has room, one at a
// time: the connection that one dialled may have room for all who wait. At the
// bound it waits for room instead.
func (p *conns) reserve(ctx context.Context) (*conn, error) {
	if c, err := p.take(); c != nil || err != nil {
		return c, err
	}
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-p.turn }()
	for {
		if c, err := p.take(); c != nil || err != nil {
			return c, err
		}
		if !p.full() {
			break
		}
		select {
		case <-p.room:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err := p.pause(); err != nil {
		return nil, err
	}
	return p.dial(ctx)
}

// full says whether no further connection may be opened. One that was told to go
// away counts until its last answer has come.
func (p *conns) full() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.max > 0 && len(p.open) >= p.max
}

// look wakes whoever waits for room.
func (p *conns) look() {
	select {
	case p.room <- struct{}{}:
	default:
	}
}

// take holds a place on an open connection, if one has room, and closes those
// that are of no more use.
func (p *conns) take() (*conn, error) {
	var found *conn
	var useless []*conn
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, errConnsClosed
	}
	now := p.now()
	p.open = slices.DeleteFunc(p.open, func(c *conn) bool {
		switch {
		case c.Err() != nil, c.users == 0 && now.Sub(c.lastUsed) > idleLimit:
			c.retired = true
			if c.users == 0 {
				useless = append(useless, c)
			}
			return true
		case found == nil && c.Reserve() == nil: // else it is full, or told to go away
			c.users++
			found = c
		}
		return false
	})
	p.mu.Unlock()
	for _, c := range useless {
		c.Close()
	}
	return found, nil
}

func (p *conns) pause() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now().Before(p.pauseTo) {
		return p.failure
	}
	return nil
}

// dial opens a connection and holds a place on it.
func (p *conns) dial(ctx context.Context) (*conn, error) {
	p.mu.Lock()
	age := p.age
	p.mu.Unlock()
	dialing, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	cc, err := p.transport.NewClientConn(dialing, p.scheme, p.addr)
	if err == nil {
		if err = cc.Reserve(); err != nil {
			cc.Close()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		if err == nil {
			cc.Close()
		}
		return nil, ctx.Err()
	case err != nil:
		p.failure = fmt.Errorf("connect to %s: %w", p.addr, err)
		p.pauseTo = p.now().Add(dialPause)
		return nil, p.failure
	case p.closed:
		cc.Close()
		return nil, errConnsClosed
	}
	c := &conn{ClientConn: cc, users: 1, lastUsed: p.now(), age: age}
	if p.max > 0 { // the server may allow more later: APNs does, once it knows the token
		cc.SetStateHook(func(*http.ClientConn) { p.look() })
	}
	p.open = append(p.open, c)
	return c, nil
}

// renew has c, and all connections that are as old, take no more requests. Of
// many that are refused together, the first does so for all.
func (p *conns) renew(c *conn) {
	var useless []*conn
	p.mu.Lock()
	if c.age == p.age {
		p.age++
	}
	p.open = slices.DeleteFunc(p.open, func(o *conn) bool {
		if o.age > c.age {
			return false
		}
		o.retired = true
		if o.users == 0 {
			useless = append(useless, o)
		}
		return true
	})
	p.mu.Unlock()
	p.look()
	for _, o := range useless {
		o.Close()
	}
}

// free ends one use of c. A broken connection is used for nothing more: a
// request that got no answer may not be the only one that won't.
func (p *conns) free(c *conn, broken bool) {
	p.mu.Lock()
	c.users--
	c.lastUsed = p.now()
	if broken && !c.retired {
		c.retired = true
		p.open = slices.DeleteFunc(p.open, func(o *conn) bool { return o == c })
	}
	last := c.retired && c.users == 0
	p.mu.Unlock()
	p.look()
	if last {
		c.Close()
	}
}

// close ends all connections, and every later reserve fails.
func (p *conns) close() {
	p.mu.Lock()
	open := p.open
	p.open, p.closed = nil, true
	p.mu.Unlock()
	p.look()
	for _, c := range open {
		c.Close()
	}
}
