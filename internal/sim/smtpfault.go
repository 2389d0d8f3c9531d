package sim

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// checkSMTPFault refuses what this protocol has no way to do.
func checkSMTPFault(x *Fault) error {
	switch {
	case x.Do == Answer && x.Code == 0:
		return errors.New("do answer: want a code")
	case x.RetryAfter != 0:
		return errors.New("SMTP has no retry-after")
	case strings.ContainsAny(x.Error, "\r\n"):
		return errors.New("error: want one line")
	}
	return nil
}

// fault lets step misbehave as it was told to. If answered, the client has got
// its answer, and the command must have no further effect; an error ends the
// session. recipient is the one that the step is about, if it is about one.
func (c *smtpConn) fault(step Step, recipient ...string) (answered bool, err error) {
	ev := Event{
		Step:      step,
		Conn:      c.gate.number,
		Peer:      c.gate.RemoteAddr(),
		From:      c.tx.from,
		To:        c.tx.to,
		Subject:   c.tx.subject,
		MessageID: c.tx.messageID,
	}
	if len(recipient) > 0 {
		ev.To = recipient
	}
	x, ok := c.srv.take(ev)
	if !ok {
		return false, nil
	}
	c.tx.faults = append(c.tx.faults, x.String())
	if err := c.flush(); err != nil { // what was answered before is no part of this
		return false, err
	}
	if err := x.start(c.gate.gate.ctx, ev); err != nil {
		return false, err
	}
	switch x.Do {
	case Answer:
		return true, c.answer(&x)
	case Hang:
		return false, c.hang()
	case Drop:
		return false, errors.New("dropped")
	case Reset:
		return false, errors.Join(errors.New("reset"), c.gate.reset())
	case Partial:
		_, err := c.bw.WriteString(usualReply(step)[:2])
		return false, errors.Join(err, errEnd)
	case Garbage:
		return true, c.reply("\x00\xfe\xff this is no reply")
	}
	return false, nil
}

// answer says what the fault wants said. After 421 the server closes (RFC 5321
// §3.8).
func (c *smtpConn) answer(x *Fault) error {
	text := x.Error
	if text == "" {
		text = "as simulated"
		if class := x.Code / 100; class == 2 || class == 4 || class == 5 {
			text = fmt.Sprintf("%d.0.0 %s", class, text)
		}
	}
	err := c.reply(fmt.Sprintf("%d %s", x.Code, text))
	if x.Code == 421 {
		err = errors.Join(err, errEnd)
	}
	return err
}

// hang keeps silent until the client has gone or the server closes.
func (c *smtpConn) hang() error {
	if err := c.conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, c.conn)
	return errors.Join(errors.New("hung until the end"), err)
}

// usualReply is the code that a step has if nothing is wrong.
func usualReply(step Step) string {
	switch step {
	case StepConnect, StepSTARTTLS:
		return "220"
	case StepAuth:
		return "235"
	case StepData:
		return "354"
	case StepQuit:
		return "221"
	}
	return "250"
}
