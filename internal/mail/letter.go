package mail

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stormpost/stormpost/internal/message"
)

// Letter is an email to its one recipient, read and checked, for services that
// compose the message themselves.
type Letter struct {
	From, To   Address
	ReplyTo    []Address
	Subject    string
	Text, HTML string
	Headers    []Header // the request's own, in the order of their names
	Files      []File
	MessageID  string // without angle brackets
}

// Header is one header field.
type Header struct{ Name, Value string }

// File is an attachment.
type File struct {
	Name    string
	Type    string // a media type, never empty
	ID      string // of a Content-ID, without angle brackets; then it is inline
	Content []byte
}

// NewLetter reads env, which must be an email. Errors are *Unfit.
func NewLetter(env *message.Envelope) (*Letter, error) {
	d, err := NewDraft(env)
	if err != nil {
		return nil, err
	}
	e := env.Content.Email
	l := &Letter{From: d.From, To: d.To, Subject: e.Subject, Text: e.Text, HTML: e.HTML, MessageID: d.messageID(env.ID)}
	for _, f := range d.fields {
		if f.name == "Reply-To" {
			l.ReplyTo = f.all
		}
	}
	if err := clean("subject", e.Subject); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(e.Headers)) {
		if err := checkField(name, e.Headers[name]); err != nil {
			return nil, err
		}
		l.Headers = append(l.Headers, Header{name, e.Headers[name]})
	}
	for _, a := range e.Attachments {
		if err := checkFile(a); err != nil {
			return nil, err
		}
		kind, err := typeOf(a)
		if err != nil {
			return nil, err
		}
		f := File{Name: a.Filename, Type: kind, Content: a.Content}
		if e.HTML != "" {
			f.ID = a.ContentID
		}
		l.Files = append(l.Files, f)
	}
	return l, nil
}

// EmptyFiles names the attachments of e without a byte, which SMTP carries and
// such services refuse.
func EmptyFiles(e *message.Email, service string) (errs message.FieldErrors) {
	for i, a := range e.Attachments {
		if len(a.Content) == 0 {
			errs = append(errs, message.FieldError{Field: fmt.Sprintf("attachments[%d].content", i), Problem: "is empty, which " + service + " refuses"})
		}
	}
	return errs
}

// Mailbox is a as RFC 5322 has it, but with its name in UTF-8. A name that looks
// like an encoded word is quoted too: nobody decodes it there.
func (a Address) Mailbox() string {
	if a.Name == "" {
		return a.Spec()
	}
	name := a.Name
	if strings.ContainsAny(name, `()<>[]:;@\,."`) || strings.Contains(name, "=?") {
		name = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(name) + `"`
	}
	return name + " <" + a.Spec() + ">"
}
