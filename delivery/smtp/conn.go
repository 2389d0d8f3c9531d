package smtp

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/stormpost/stormpost/internal/credential"
)

// conn is one connection, used by one goroutine at a time; only interrupt may
// be called by another.
type conn struct {
	raw  net.Conn // TCP: what deadlines and peek are for
	nc   net.Conn // what is spoken over: raw, or TLS over it
	br   *bufio.Reader
	caps extensions
	use  credential.Use // what it is signed in with

	broken   bool      // not to be used again, not even for QUIT
	stale    bool      // a transaction was begun and not ended: needs RSET
	sent     int       // messages handed over
	verified time.Time // last reply, by Config.Now
	until    time.Time // no step may last longer; zero: no bound

	msg, wire bytes.Buffer // kept from message to message

	mu          sync.Mutex
	interrupted bool
}

func newConn(raw net.Conn) *conn {
	c := &conn{raw: raw}
	c.speakOver(raw)
	return c
}

// speakOver begins to speak over nc, forgetting everything that was read.
func (c *conn) speakOver(nc net.Conn) {
	c.nc = nc
	c.br = bufio.NewReaderSize(nc, maxReplyLine)
	c.caps = extensions{}
}

// arm allows d for what follows, and not longer than until, unless the
// connection was interrupted.
func (c *conn) arm(d time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.interrupted {
		return os.ErrDeadlineExceeded
	}
	// The network's clock is the machine's, whatever Config.Now is.
	end := time.Now().Add(d)
	if !c.until.IsZero() && c.until.Before(end) {
		end = c.until
	}
	return c.raw.SetDeadline(end)
}

// interrupt makes every read and write fail, now and from now on.
func (c *conn) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.interrupted = true
	_ = c.raw.SetDeadline(time.Unix(1, 0)) // fails only on a closed connection
}

// command sends one command and reads its reply.
func (c *conn) command(limit time.Duration, line string) (reply, error) {
	if err := c.arm(limit); err != nil {
		return reply{}, err
	}
	if _, err := c.nc.Write([]byte(line + "\r\n")); err != nil {
		return reply{}, err
	}
	return readReply(c.br)
}

// expect is command for a reply of the given class; another is an *Error named
// after step.
func (c *conn) expect(limit time.Duration, class int, step, line string) (reply, error) {
	r, err := c.command(limit, line)
	if err != nil {
		return r, fmt.Errorf("%s: %w", step, err)
	}
	return r, r.want(class, step)
}

// want is nil for a reply of the given class.
func (r reply) want(class int, step string) error {
	switch {
	case r.class() == class:
		return nil
	case r.class() >= 4:
		return &Error{Step: step, Code: r.code, Enhanced: r.enhanced(), Reply: r.String()}
	}
	return fmt.Errorf("%s: %w: unexpected reply %q", step, errProtocol, r.String())
}

// close ends the connection without a word.
func (c *conn) close() {
	// Nothing is owed to a peer that is left so.
	_ = c.raw.Close()
}

// write sends a command, or a group of them, without waiting for the reply.
func (c *conn) write(limit time.Duration, lines string) error {
	if err := c.arm(limit); err != nil {
		return err
	}
	_, err := c.nc.Write([]byte(lines))
	return err
}

// quit ends the connection as RFC 5321 §4.1.1.10 asks, within limit.
func (c *conn) quit(limit time.Duration) {
	// Whatever the answer is, the connection is over.
	_, _ = c.command(limit, "QUIT")
	c.close()
}

// keepBuffer is how much memory a connection keeps between two messages.
const keepBuffer = 256 << 10

func (c *conn) resetBuffers() {
	for _, b := range []*bytes.Buffer{&c.msg, &c.wire} {
		if b.Cap() > keepBuffer {
			*b = bytes.Buffer{}
		}
		b.Reset()
	}
}

// quiet says that the server is still there and has sent nothing unasked, as
// far as can be told without waiting. TLS 1.3 sends its tickets before the
// reply to EHLO, so that under TLS, too, nothing is to be expected.
func (c *conn) quiet() bool { return c.br.Buffered() == 0 && socketQuiet(c.raw) }

// overTLS says whether the connection is encrypted.
func (c *conn) overTLS() bool { return c.nc != c.raw }
