package mail

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// Draft is a message's addresses, and with them what the envelope says.
type Draft struct {
	From, To Address // the envelope's; From is the message's, too
	fields   []field
	UTF8     bool // some address needs SMTPUTF8
	EightBit bool // the message has bytes over 0x7f; known once it is composed
}

// field is an address field of the header.
type field struct {
	name string
	all  []Address
}

// NewDraft reads the addresses of env, which must be an email. Errors are *Unfit.
func NewDraft(env *message.Envelope) (d Draft, err error) {
	if env.Content == nil || env.Content.Email == nil {
		return d, badContent("content", "is no email")
	}
	e := env.Content.Email
	if d.To, err = ParseMailbox("recipient", env.Recipient); err != nil {
		return d, err
	}
	if d.From, err = ParseMailbox("From", e.From); err != nil {
		return d, err
	}
	d.UTF8 = d.To.UTF8() || d.From.UTF8()
	for _, list := range []struct {
		name string
		all  []string
	}{{"To", e.To}, {"Cc", e.Cc}, {"Reply-To", e.ReplyTo}} {
		f := field{list.name, make([]Address, len(list.all))}
		for i, s := range list.all {
			if s == env.Recipient {
				f.all[i] = d.To
				continue
			}
			if f.all[i], err = ParseMailbox(list.name, s); err != nil {
				return d, err
			}
			d.UTF8 = d.UTF8 || f.all[i].UTF8()
		}
		d.fields = append(d.fields, f)
	}
	return d, nil
}

// composer writes one message.
type composer struct {
	buf      *bytes.Buffer
	id       string
	eightBit bool // bodies may be 8bit
	wrote8   bool
	parts    int // multiparts so far, for their boundaries
}

// Compose writes env's email to buf, as RFC 5322 and MIME have it: CRLF line
// ends, no line over 998 bytes, the last line ended. The same envelope and time
// give the same bytes. Bcc recipients appear nowhere. Without eightBit every
// body is ASCII. Errors are *Unfit.
func Compose(buf *bytes.Buffer, env *message.Envelope, d *Draft, now time.Time, eightBit bool) error {
	e := env.Content.Email
	c := &composer{buf: buf, id: env.ID.String(), eightBit: eightBit}
	if err := c.head(e, d, now); err != nil {
		return err
	}
	if err := c.content(e); err != nil {
		return err
	}
	if !bytes.HasSuffix(buf.Bytes(), []byte("\r\n")) {
		buf.WriteString("\r\n")
	}
	d.EightBit = c.wrote8 || d.UTF8
	return nil
}

// head writes every field but those of the body.
func (c *composer) head(e *message.Email, d *Draft, now time.Time) error {
	if err := c.mailboxes("From", d.From); err != nil {
		return err
	}
	if len(e.To)+len(e.Cc) == 0 {
		// All are Bcc. Some receivers take a message without any of the three
		// fields for junk; the empty group is RFC 5322's way to name nobody.
		c.buf.WriteString("To: undisclosed-recipients:;\r\n")
	}
	for _, f := range d.fields {
		if err := c.mailboxes(f.name, f.all...); err != nil {
			return err
		}
	}
	if err := clean("subject", e.Subject); err != nil {
		return err
	}
	if e.Subject != "" {
		text := encodeText(e.Subject)
		if len("Subject: ")+len(e.Subject) > maxLine {
			text = encodeWords(e.Subject) // it may have no blank to fold at
		}
		if err := writeHeader(c.buf, "Subject", text); err != nil {
			return err
		}
	}
	c.buf.WriteString("Date: ")
	c.buf.Write(now.UTC().AppendFormat(c.buf.AvailableBuffer(), time.RFC1123Z))
	c.buf.WriteString("\r\nMessage-ID: <" + c.id + "@" + d.From.Host + ">\r\n")
	if err := c.custom(e.Headers); err != nil {
		return err
	}
	c.buf.WriteString("MIME-Version: 1.0\r\n")
	return nil
}

func (c *composer) mailboxes(name string, all ...Address) error {
	if len(all) == 0 {
		return nil
	}
	var b strings.Builder
	for i, a := range all {
		if i > 0 {
			b.WriteString(", ")
		}
		appendMailbox(&b, a)
	}
	return writeHeader(c.buf, name, b.String())
}

// custom writes the request's own header fields, in the order of their names.
func (c *composer) custom(headers map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		if err := checkField(name, headers[name]); err != nil {
			return err
		}
		if err := writeHeader(c.buf, name, encodeText(headers[name])); err != nil {
			return err
		}
	}
	return nil
}

func checkField(name, value string) error {
	field := "headers." + name
	if !isFieldName(name) || ownField(strings.ToLower(name)) {
		return badContent(field, "is not a field that a message may set")
	}
	return clean(field, value)
}

// messageID is without angle brackets.
func (d *Draft) messageID(id message.ID) string { return id.String() + "@" + d.From.Host }
