package smtp

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/stormpost/stormpost/internal/mail"
	"github.com/stormpost/stormpost/internal/message"
)

// finalWrite is how much of a message's end the last write holds: one TLS record.
const finalWrite = 16 << 10

const finalDot = ".\r\n"

// slot is one connection, for one message.
type slot struct {
	p *Provider
	c *conn

	signedOut bool // by the server, in the envelope
}

// Release puts the connection back, or ends it when it has served its time.
func (s *slot) Release() {
	switch c := s.c; {
	case c.broken:
		s.p.discard(c)
	case c.sent >= s.p.cfg.MaxPerConnection:
		s.p.retire(c)
	default:
		s.p.idle <- c
	}
}

// Send hands env over as the package documentation says.
func (s *slot) Send(ctx context.Context, env *message.Envelope, last func() error) message.Result {
	res, signedOut := s.try(ctx, env, last)
	if !signedOut || s.p.cfg.Credential == nil {
		return res
	}
	// It was certainly not taken, and why is nothing of the message's: once more,
	// newly signed in.
	if err := s.reconnect(ctx, env.Until); err != nil {
		return message.Result{Outcome: message.Returned, Code: res.Code, Reply: printable(res.Reply + "; and then: " + err.Error()), Fault: true}
	}
	res, _ = s.try(ctx, env, last)
	return res
}

// try is one hand-over. signedOut says that the server asks for AUTH again, and
// that last was not called.
func (s *slot) try(ctx context.Context, env *message.Envelope, last func() error) (res message.Result, signedOut bool) {
	stop := context.AfterFunc(ctx, s.c.interrupt)
	s.signedOut, s.c.until = false, env.Until
	res = s.send(ctx, env, last)
	s.c.until = time.Time{}
	if !stop() {
		s.c.broken = true
	}
	s.c.resetBuffers()
	return res, s.signedOut && ctx.Err() == nil
}

// reconnect replaces the slot's connection by a new one, until when the claim ends.
func (s *slot) reconnect(ctx context.Context, until time.Time) error {
	if !until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, until)
		defer cancel()
	}
	c, err := s.p.dial(ctx)
	if err != nil {
		return err
	}
	s.c.close()
	s.c = c
	return nil
}

func (s *slot) send(ctx context.Context, env *message.Envelope, last func() error) message.Result {
	d, size, err := s.prepare(env)
	if err != nil {
		var u *mail.Unfit
		if errors.As(err, &u) {
			return message.Result{Outcome: message.Rejected, Unasked: true, Code: u.Code, Reply: printable(u.Reason)}
		}
		return message.Result{Outcome: message.Deferred, Reply: printable(err.Error())}
	}
	if res, ok := s.envelope(ctx, d, size); !ok {
		return res
	}
	return s.data(ctx, last)
}

// prepare composes and signs the message into c.wire, dot-stuffed and with the
// final dot. size is that of the message itself.
func (s *slot) prepare(env *message.Envelope) (d mail.Draft, size int, err error) {
	c, p := s.c, s.p
	if d, err = mail.NewDraft(env); err != nil {
		return d, 0, err
	}
	if d.UTF8 && !(c.caps.utf8 && c.caps.eightBit) {
		return d, 0, &mail.Unfit{Code: "5.6.7", Reason: "an address needs SMTPUTF8 (RFC 6531), which the relay doesn't offer"}
	}
	keys := p.keys[d.From.Host]
	// A relay behind this one may have to recode 8bit bodies, which would break
	// a signature (RFC 6376 §5.3).
	if err = mail.Compose(&c.msg, env, &d, p.cfg.Now(), c.caps.eightBit && len(keys) == 0); err != nil {
		return d, 0, err
	}
	signature := ""
	if len(keys) > 0 {
		if signature, err = sign(c.msg.Bytes(), keys); err != nil {
			return d, 0, err
		}
	}
	size = len(signature) + c.msg.Len()
	if c.caps.maxSize > 0 && int64(size) > c.caps.maxSize {
		return d, 0, &mail.Unfit{Code: "5.3.4", Reason: fmt.Sprintf("message has %d bytes, the relay takes %d", size, c.caps.maxSize)}
	}
	c.wire.Grow(size + size/64 + len(finalDot))
	stuff(&c.wire, []byte(signature))
	stuff(&c.wire, c.msg.Bytes())
	c.wire.WriteString(finalDot)
	return d, size, nil
}

// envelope sends MAIL, RCPT and DATA. ok says that the server waits for the
// message; else res is how the attempt ended.
func (s *slot) envelope(ctx context.Context, d mail.Draft, size int) (res message.Result, ok bool) {
	c := s.c
	c.stale = true
	commands := [...]string{stepMail: mailCommand(c.caps, d, size), stepRcpt: "RCPT TO:<" + d.To.Spec() + ">\r\n", stepData: "DATA\r\n"}
	if !c.caps.pipelining {
		for i, line := range commands {
			if err := c.write(s.p.limits.command, line); err != nil {
				return s.early(ctx, err), false
			}
			if res, ok := s.step(ctx, i); !ok {
				return res, false
			}
		}
		return res, true
	}
	if err := c.write(s.p.limits.command, strings.Join(commands[:], "")); err != nil {
		return s.early(ctx, err), false
	}
	// Every command of the group has its reply, also after one that was refused;
	// the first refusal decides (RFC 2920 §3.1).
	ok = true
	for i := range commands {
		isData := i == stepData
		stepRes, stepOK := s.step(ctx, i)
		switch {
		case ok && !stepOK:
			res, ok = stepRes, false
		case !ok && isData && stepOK:
			// The server waits for a message that nobody may get. Even a lone dot
			// would be one; only leaving is not.
			c.broken = true
		}
		if c.broken {
			break
		}
	}
	return res, ok
}

func mailCommand(caps extensions, d mail.Draft, size int) string {
	var b strings.Builder
	b.WriteString("MAIL FROM:<" + d.From.Spec() + ">")
	if caps.sizes {
		b.WriteString(" SIZE=" + strconv.Itoa(size))
	}
	if d.EightBit && caps.eightBit {
		b.WriteString(" BODY=8BITMIME")
	}
	if d.UTF8 {
		b.WriteString(" SMTPUTF8")
	}
	b.WriteString("\r\n")
	return b.String()
}

// The commands of the envelope, in order.
const (
	stepMail = iota
	stepRcpt
	stepData
)

// step reads the reply to a command of the envelope.
func (s *slot) step(ctx context.Context, command int) (message.Result, bool) {
	isData := command == stepData
	limit := s.p.limits.command
	if isData {
		limit = s.p.limits.data
	}
	if err := s.c.arm(limit); err != nil {
		return s.early(ctx, err), false
	}
	r, err := readReply(s.c.br)
	switch {
	case err != nil:
		return s.early(ctx, err), false
	case isData && r.code == 354, !isData && r.class() == 2:
		return message.Result{}, true
	case r.class() >= 4:
		s.c.verified = s.p.cfg.Now()
		s.c.broken = s.c.broken || r.code == 421 || aboutUs(r) && r.code != 503
		s.signedOut = s.signedOut || signedOut(r)
		res := refused(r)
		if command == stepRcpt && res.Outcome == message.Rejected && gone[r.enhanced()] {
			res.Code = message.RecipientGone
		}
		return res, false
	}
	return s.early(ctx, fmt.Errorf("%w: unexpected reply %q", errProtocol, r.String())), false
}

// early is the result of a failure before the final write.
func (s *slot) early(ctx context.Context, err error) message.Result {
	s.c.broken = true
	if ctx.Err() != nil {
		return message.Result{Outcome: message.Returned, Reply: "stopped before the hand-over"}
	}
	return message.Result{Outcome: message.Deferred, Reply: printable(err.Error()), Fault: true}
}
