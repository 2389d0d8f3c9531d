package sim

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// errEnd ends a session whose client has been told all that it is going to be.
var errEnd = errors.New("session ended")

// smtpConn is one session. It belongs to one goroutine.
type smtpConn struct {
	srv  *SMTPServer
	gate *gatedConn
	conn net.Conn // gate, or TLS over it
	br   *bufio.Reader
	bw   *bufio.Writer

	helo     string // what the client called itself; empty before
	extended bool   // by EHLO
	secure   bool
	user     string // authenticated as
	token    string // by this token, if by any
	mistakes int
	authErrs int
	raw      []byte // the message being read, reused

	tx transaction
}

// transaction is what RSET forgets.
type transaction struct {
	open      bool
	from      string
	to        []string
	utf8      bool
	subject   string
	messageID string
	faults    []string
}

func newSMTPConn(s *SMTPServer, g *gatedConn) *smtpConn {
	c := &smtpConn{srv: s, gate: g}
	c.use(g)
	return c
}

// use makes the session go on over conn.
func (c *smtpConn) use(conn net.Conn) {
	c.conn = conn
	c.br = bufio.NewReaderSize(flushReader{c}, 16<<10)
	c.bw = bufio.NewWriter(conn)
}

// flushReader sends the gathered replies whenever the session is about to wait
// for its client, so that a pipelined group is answered in one packet (RFC 2920
// §3.2) and nobody waits for a reply that sits in a buffer.
type flushReader struct{ c *smtpConn }

func (r flushReader) Read(p []byte) (int, error) {
	if err := r.c.flush(); err != nil {
		return 0, err
	}
	return r.c.conn.Read(p)
}

func (c *smtpConn) flush() error {
	if err := c.conn.SetDeadline(time.Now().Add(c.srv.o.Timeout)); err != nil {
		return err
	}
	return c.bw.Flush()
}

// serve runs the session to its end.
func (c *smtpConn) serve() {
	defer c.gate.Close()
	err := c.greet()
	for err == nil {
		var line string
		if line, err = c.readLine(); err == nil {
			err = c.command(line)
		}
	}
	if errors.Is(err, errEnd) {
		err = c.flush()
	}
	if err != nil {
		c.srv.o.Log.Debug("session failed", "conn", c.gate.number, "error", err)
	}
}

func (c *smtpConn) greet() error {
	if c.srv.o.Implicit {
		if err := c.handshake(); err != nil {
			return err
		}
	}
	if answered, err := c.fault(StepConnect); answered || err != nil {
		return errors.Join(err, errEnd)
	}
	return c.reply("220 " + c.srv.o.Hostname + " ESMTP simulator")
}

// readLine reads one command without its CRLF. What is too long, or isn't
// ended by CRLF, is answered here and skipped.
func (c *smtpConn) readLine() (string, error) {
	for {
		line, err := c.br.ReadSlice('\n')
		tooLong := len(line) > smtpMaxLine
		for errors.Is(err, bufio.ErrBufferFull) {
			tooLong = true
			_, err = c.br.ReadSlice('\n')
		}
		if err != nil {
			return "", err
		}
		text, ok := bytes.CutSuffix(line, []byte("\r\n"))
		switch {
		case tooLong:
			err = c.refuse("500 5.5.2 line too long")
		case !ok || bytes.IndexByte(text, '\r') >= 0:
			err = c.refuse("500 5.5.2 lines end in CRLF, and nothing else")
		default:
			return string(text), nil
		}
		if err != nil {
			return "", err
		}
	}
}

// command obeys one line. An error ends the session.
func (c *smtpConn) command(line string) error {
	verb, arg, _ := strings.Cut(line, " ")
	switch strings.ToUpper(verb) {
	case "EHLO", "HELO":
		return c.hello(strings.EqualFold(verb, "EHLO"), strings.TrimSpace(arg))
	case "STARTTLS":
		return c.startTLS(arg)
	case "AUTH":
		return c.auth(arg)
	case "MAIL":
		return c.mail(arg)
	case "RCPT":
		return c.rcpt(arg)
	case "DATA":
		return c.data(arg)
	case "RSET":
		c.tx = transaction{}
		return c.reply("250 2.0.0 forgotten")
	case "NOOP":
		return c.reply("250 2.0.0 done")
	case "VRFY":
		return c.reply("252 2.1.5 send it some mail and see")
	case "QUIT":
		if answered, err := c.fault(StepQuit); answered || err != nil {
			return errors.Join(err, errEnd)
		}
		return errors.Join(c.reply("221 2.0.0 bye"), errEnd)
	}
	return c.refuse("500 5.5.1 unknown command")
}

// hello answers EHLO and HELO, which also begin anew (RFC 5321 §4.1.4).
func (c *smtpConn) hello(extended bool, name string) error {
	if answered, err := c.fault(StepEHLO); answered || err != nil {
		return err
	}
	if name == "" {
		return c.refuse("501 5.5.4 who are you?")
	}
	c.helo, c.extended, c.tx = name, extended, transaction{}
	if !extended {
		return c.reply("250 " + c.srv.o.Hostname)
	}
	lines := []string{c.srv.o.Hostname, "PIPELINING", "8BITMIME", "SMTPUTF8", fmt.Sprintf("SIZE %d", smtpMaxMessage)}
	if !c.secure && !c.srv.o.NoTLS {
		lines = append(lines, "STARTTLS")
	}
	if c.offersAuth() {
		lines = append(lines, c.srv.mechanisms())
	}
	for _, l := range lines {
		if err := c.reply("250-" + l); err != nil {
			return err
		}
	}
	return c.reply("250 ENHANCEDSTATUSCODES")
}

// startTLS is RFC 3207.
func (c *smtpConn) startTLS(arg string) error {
	switch {
	case c.srv.o.NoTLS:
		return c.refuse("502 5.5.1 no TLS here")
	case c.secure:
		return c.refuse("503 5.5.1 TLS is on already")
	case arg != "":
		return c.refuse("501 5.5.4 STARTTLS takes no argument")
	case c.br.Buffered() > 0:
		// Obeying later what was sent in the clear would let a man in the
		// middle put commands into the protected session (CVE-2011-0411).
		return errors.Join(c.reply("554 5.5.0 commands after STARTTLS"), errEnd)
	}
	if answered, err := c.fault(StepSTARTTLS); answered || err != nil {
		return err
	}
	if err := errors.Join(c.reply("220 2.0.0 go ahead"), c.flush()); err != nil {
		return err
	}
	return c.handshake()
}

// handshake goes on over TLS, as if the session had just begun.
func (c *smtpConn) handshake() error {
	t := tls.Server(c.gate, c.srv.cert.tls)
	if err := t.HandshakeContext(c.gate.gate.ctx); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	c.use(t)
	c.secure, c.helo, c.user, c.token, c.tx = true, "", "", "", transaction{}
	return nil
}

func (c *smtpConn) reply(line string) error {
	_, err := c.bw.WriteString(line + "\r\n")
	return err
}

// refuse answers a client's mistake, and ends a session that makes too many.
func (c *smtpConn) refuse(line string) error {
	if c.mistakes++; c.mistakes >= smtpMaxErrors {
		return errors.Join(c.reply("421 4.7.0 too many errors"), errEnd)
	}
	return c.reply(line)
}
