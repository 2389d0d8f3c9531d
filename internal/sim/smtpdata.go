package sim

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
)

// data takes a message: it is stored, for each recipient, before it is
// answered.
func (c *smtpConn) data(arg string) error {
	switch {
	case arg != "":
		return c.refuse("501 5.5.4 DATA takes no argument")
	case !c.tx.open:
		return c.refuse("503 5.5.1 MAIL first")
	case len(c.tx.to) == 0:
		return c.refuse("554 5.5.1 no valid recipients")
	}
	if answered, err := c.fault(StepData); answered || err != nil {
		return err
	}
	if err := c.reply("354 end with a dot on a line of its own"); err != nil {
		return err
	}
	size, problem, err := c.readMessage()
	if err != nil {
		return err
	}
	defer func() { c.tx = transaction{} }()
	if problem != "" {
		return c.refuse(problem)
	}
	c.tx.subject, c.tx.messageID = subjectAndID(c.raw)
	if answered, err := c.fault(StepDot); answered || err != nil {
		return err
	}
	if err := c.store(size); err != nil {
		c.srv.o.Log.Error("message not stored", "error", err)
		return c.reply("451 4.3.0 can't store it")
	}
	if answered, err := c.fault(StepReply); answered || err != nil {
		return err
	}
	return c.reply("250 2.0.0 taken")
}

func (c *smtpConn) store(size int) error {
	ts := make([]Taken, len(c.tx.to))
	now := c.srv.o.Clock()
	for i, to := range c.tx.to {
		ts[i] = Taken{
			Channel:    "email",
			Provider:   "smtp",
			From:       c.tx.from,
			To:         to,
			Subject:    c.tx.subject,
			MessageID:  c.tx.messageID,
			ReceivedAt: now,
			Size:       size,
			Raw:        c.raw,
			Via:        c.via(),
			Conn:       c.gate.number,
			Faults:     c.tx.faults,
		}
	}
	return c.srv.o.Store.Append(ts...)
}

// via is the keyword for a Received field (RFC 3848, RFC 6531 §4.3).
func (c *smtpConn) via() string {
	if !c.extended {
		return "SMTP"
	}
	via := "ESMTP"
	if c.tx.utf8 {
		via = "UTF8SMTP"
	}
	if c.secure {
		via += "S"
	}
	if c.user != "" {
		via += "A"
	}
	return via
}

// dataReader follows a message's bytes. Lines count as such only if CRLF ends
// them (RFC 5321 §2.3.8): a dot after anything else is just a dot.
type dataReader struct {
	atStart bool // of a line
	afterCR bool // within a line longer than the buffer
	inBody  bool
	lines   int // of the body
	bare    bool
}

// readMessage reads up to the final dot into c.raw, dots unstuffed (§4.5.2).
// problem is the reply for one that can't be taken; the conversation is in step
// even then.
func (c *smtpConn) readMessage() (size int, problem string, err error) {
	c.raw = c.raw[:0]
	d := dataReader{atStart: true}
	for {
		part, err := c.br.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return 0, "", fmt.Errorf("within a message: %w", err)
		}
		if d.atStart && string(part) == ".\r\n" {
			break
		}
		if d.atStart && part[0] == '.' {
			part = part[1:]
		}
		size += len(part)
		c.raw = append(c.raw, part[:min(len(part), RawLimit-len(c.raw))]...)
		if d.follow(part, err == nil); d.inBody && d.atStart && d.lines == 1 {
			if err := c.midData(); err != nil {
				return 0, "", err
			}
		}
	}
	switch {
	case d.bare:
		return size, "554 5.6.0 CR or LF alone", nil
	case size > smtpMaxMessage:
		return size, fmt.Sprintf("552 5.3.4 over %d bytes", smtpMaxMessage), nil
	}
	return size, "", nil
}

// follow moves d past part, a line or, if not whole, a piece of one.
func (d *dataReader) follow(part []byte, whole bool) {
	text := part
	crlf := false
	if whole {
		text = part[:len(part)-1]
		if t, ok := bytes.CutSuffix(text, []byte("\r")); ok {
			text, crlf = t, true
		} else if d.afterCR && len(text) == 0 {
			crlf = true
		}
		d.bare = d.bare || !crlf
	}
	if d.afterCR && !(whole && len(part) == 1) {
		d.bare = true
	}
	d.afterCR = !whole && text[len(text)-1] == '\r'
	if d.afterCR {
		text = text[:len(text)-1]
	}
	d.bare = d.bare || bytes.IndexByte(text, '\r') >= 0

	switch {
	case d.inBody && crlf:
		d.lines++
	case d.atStart && crlf && len(text) == 0:
		d.inBody = true
	}
	d.atStart = crlf
}

// midData runs StepMidData's fault. There is no answer within a message, so
// whatever the server says it then closes.
func (c *smtpConn) midData() error {
	c.tx.subject, c.tx.messageID = subjectAndID(c.raw)
	answered, err := c.fault(StepMidData)
	if answered {
		return errors.Join(err, errEnd)
	}
	return err
}
