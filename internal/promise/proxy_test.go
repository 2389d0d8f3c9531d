//go:build linux

package promise

import (
	"net"
	"net/url"
	"sync"
	"testing"
)

// fault is how a proxy keeps the ledger away.
type fault int

const (
	none   fault = iota
	refuse       // every connection is closed
	hang         // connections stay open, and nothing passes any more
	cut          // what is asked passes; when the answer comes, the connection is cut instead
)

// proxy stands before PostgreSQL.
type proxy struct {
	net.Listener
	to string

	mu    sync.Mutex
	mode  fault
	turn  chan struct{} // closed when mode changes
	conns map[net.Conn]bool
	cuts  int // answers that were withheld
	wg    sync.WaitGroup
}

// newProxy stands before the server that dsn names, and answers with the dsn
// that leads through it.
func newProxy(t *testing.T, dsn string) (*proxy, string) {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Listener: l, to: u.Host, turn: make(chan struct{}), conns: make(map[net.Conn]bool)}
	u.Host = l.Addr().String()
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		l.Close()
		p.set(refuse)
		p.wg.Wait()
	})
	return p, u.String()
}

// set changes the fault. Refusing, and ending a hang, closes what is open.
func (p *proxy) set(mode fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if mode == refuse || p.mode == hang {
		for c := range p.conns {
			c.Close()
		}
	}
	p.mode = mode
	close(p.turn)
	p.turn = make(chan struct{})
}

func (p *proxy) withheld() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cuts
}

func (p *proxy) accept() {
	for {
		c, err := p.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		mode, turn := p.mode, p.turn
		p.conns[c] = mode != refuse
		p.mu.Unlock()
		switch mode {
		case refuse:
			p.drop(c)
		case hang: // PostgreSQL, which others use too, is not told
			p.wg.Go(func() { <-turn; p.drop(c) })
		default:
			p.wg.Go(func() { p.serve(c) })
		}
	}
}

func (p *proxy) drop(c net.Conn) {
	c.Close()
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
}

func (p *proxy) serve(c net.Conn) {
	defer p.drop(c)
	s, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	defer s.Close()
	p.mu.Lock()
	p.conns[s] = true
	p.mu.Unlock()
	defer p.drop(s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.copy(s, c, false)
	}()
	p.copy(c, s, true)
	<-done
}

// copy passes bytes on as the mode says; answers says in which direction.
func (p *proxy) copy(to, from net.Conn, answers bool) {
	defer to.Close()
	defer from.Close()
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		p.mu.Lock()
		mode, turn := p.mode, p.turn
		if mode == cut && answers {
			p.cuts++
		}
		p.mu.Unlock()
		switch {
		case mode == hang:
			<-turn // what had come is lost with the connection
			return
		case mode == refuse, mode == cut && answers:
			return
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}
