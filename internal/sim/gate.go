package sim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
)

// connLimit bounds a server's connections; further ones wait in the kernel's
// queue.
const connLimit = 2000

// gate is a listener that bounds, numbers and can end its connections.
type gate struct {
	net.Listener
	ctx    context.Context // ends when the gate closes
	cancel context.CancelFunc
	slots  chan struct{}
	number atomic.Uint64

	mu    sync.Mutex
	conns map[*gatedConn]struct{} // nil once closed
}

// listen opens addr, or a free port of the loopback interface if it is empty.
func listen(ctx context.Context, addr string) (*gate, error) {
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	g := &gate{Listener: l, slots: make(chan struct{}, connLimit), conns: map[*gatedConn]struct{}{}}
	g.ctx, g.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return g, nil
}

// Accept waits for a slot and then for a connection.
func (g *gate) Accept() (net.Conn, error) {
	c, err := g.accept()
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (g *gate) accept() (*gatedConn, error) {
	select {
	case g.slots <- struct{}{}:
	case <-g.ctx.Done():
		return nil, net.ErrClosed
	}
	conn, err := g.Listener.Accept()
	if err != nil {
		<-g.slots
		return nil, err
	}
	c := &gatedConn{Conn: conn, gate: g, number: g.number.Add(1)}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.conns == nil {
		<-g.slots
		return nil, errors.Join(net.ErrClosed, conn.Close())
	}
	g.conns[c] = struct{}{}
	return c, nil
}

// Close stops accepting and closes every connection.
func (g *gate) Close() error {
	g.cancel()
	err := g.Listener.Close()
	g.mu.Lock()
	conns := g.conns
	g.conns = nil
	g.mu.Unlock()
	for c := range conns {
		_ = c.Conn.Close() // its owner sees the error
	}
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// gatedConn is a TCP connection that gives its slot back when it is closed.
type gatedConn struct {
	net.Conn
	gate   *gate
	number uint64
	once   sync.Once
	// first, if set, is called once before the first read.
	first     func() error
	firstOnce sync.Once
}

// Read runs first, once, and reads.
func (c *gatedConn) Read(p []byte) (int, error) {
	if c.first != nil {
		var err error
		c.firstOnce.Do(func() { err = c.first() })
		if err != nil {
			return 0, err
		}
	}
	return c.Conn.Read(p)
}

// Close closes the connection; more than once is harmless.
func (c *gatedConn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		err = c.Conn.Close()
		c.gate.mu.Lock()
		delete(c.gate.conns, c)
		c.gate.mu.Unlock()
		<-c.gate.slots
	})
	return err
}

// reset closes the connection with an RST, so that neither side's kernel
// delivers what is still under way.
func (c *gatedConn) reset() error {
	if t, ok := c.Conn.(*net.TCPConn); ok {
		if err := t.SetLinger(0); err != nil && !errors.Is(err, net.ErrClosed) {
			return errors.Join(fmt.Errorf("reset: %w", err), c.Close())
		}
	}
	return c.Close()
}
