package postmark

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/stormpost/stormpost/internal/mail"
	"github.com/stormpost/stormpost/internal/message"
)

// sendRequest is the body of POST /email.
type sendRequest struct {
	From          string
	To            string
	ReplyTo       string `json:",omitempty"`
	Subject       string `json:",omitempty"`
	TextBody      string `json:",omitempty"`
	HTMLBody      string `json:"HtmlBody,omitempty"`
	Headers       []mail.Header
	Attachments   []attachment `json:",omitempty"`
	Metadata      map[string]string
	MessageStream string
}

type attachment struct {
	Name        string
	Content     []byte // base64
	ContentType string
	ContentID   string `json:",omitempty"`
}

// encode is the request for one message. An error is the message's own fault,
// and a *mail.Unfit.
func encode(env *message.Envelope, stream string) ([]byte, error) {
	l, err := mail.NewLetter(env)
	if err != nil {
		return nil, err
	}
	if err := checkSize(len(l.Text), len(l.HTML), files(l)); err != nil {
		return nil, err
	}
	r := sendRequest{
		From: l.From.Mailbox(), To: l.To.Mailbox(), Subject: l.Subject, TextBody: l.Text, HTMLBody: l.HTML,
		Metadata: map[string]string{"stormpost_id": env.ID.String()}, MessageStream: stream,
		// Else Postmark makes another Message-ID at each attempt:
		// https://postmarkapp.com/support/article/1187-setting-a-custom-message-id-header
		Headers: append(l.Headers, mail.Header{Name: "Message-ID", Value: "<" + l.MessageID + ">"}, mail.Header{Name: "X-PM-KeepID", Value: "true"}),
	}
	if l.Text == "" && l.HTML == "" {
		r.TextBody = " " // Postmark wants one of the two
	}
	all := make([]string, len(l.ReplyTo))
	for i, a := range l.ReplyTo {
		all[i] = a.Mailbox()
	}
	r.ReplyTo = strings.Join(all, ", ")
	for _, f := range l.Files {
		a := attachment{Name: f.Name, Content: f.Content, ContentType: f.Type}
		if f.ID != "" {
			a.ContentID = "cid:" + f.ID
		}
		r.Attachments = append(r.Attachments, a)
	}
	return json.Marshal(r)
}

func files(l *mail.Letter) (bytes int) {
	for _, f := range l.Files {
		bytes += encodedLen(f.Content)
	}
	return bytes
}

// encodedLen is what an attachment counts for: Postmark takes the size after
// base64 (https://postmarkapp.com/support/article/1056-what-are-the-attachment-and-email-size-limits).
func encodedLen(content []byte) int { return base64.StdEncoding.EncodedLen(len(content)) }

// checkSize takes sizes in bytes, those of files in base64. It fails with
// *mail.Unfit.
func checkSize(text, html, files int) error {
	switch {
	case max(text, html) > maxText:
		return &mail.Unfit{Code: "5.3.4", Reason: fmt.Sprintf("a text has %d bytes, Postmark takes %d", max(text, html), maxText)}
	case text+html+files > MaxBytes:
		return &mail.Unfit{Code: "5.3.4", Reason: fmt.Sprintf("texts and attachments in base64 have %d bytes together, Postmark takes %d", text+html+files, MaxBytes)}
	}
	return nil
}

// Postmark's documented limits of an address and of the sender's name:
// https://postmarkapp.com/support/article/1180-what-does-errorcode-300-mean
// and https://postmarkapp.com/developer/api/email-api
var localForm = regexp.MustCompile("^[A-Za-z0-9.!#$%&'`*+/=^_{}|~-]+$")

const maxName = 255 // characters

// Check says what of e Postmark would refuse: addresses, the sender's name,
// empty attachments, or all for its size. It fails with message.FieldErrors.
func Check(e *message.Email) error {
	errs := mail.EmptyFiles(e, "Postmark")
	bytes := 0
	for _, a := range e.Attachments {
		bytes += encodedLen(a.Content)
	}
	field := "attachments"
	if bytes == 0 || max(len(e.Text), len(e.HTML)) > maxText {
		field = "text"
		if len(e.HTML) > len(e.Text) {
			field = "html"
		}
	}
	if err := checkSize(len(e.Text), len(e.HTML), bytes); err != nil {
		errs = append(errs, message.FieldError{Field: field, Problem: err.Error()})
	}
	check := func(field, text string) (a mail.Address) {
		a, err := mail.ParseMailbox(field, text)
		if err == nil && !localForm.MatchString(a.Local) {
			errs = append(errs, message.FieldError{Field: field, Problem: "has an address that Postmark doesn't take"})
		}
		return a
	}
	if a := check("from", e.From); utf8.RuneCountInString(a.Name) > maxName {
		errs = append(errs, message.FieldError{Field: "from", Problem: fmt.Sprintf("has a name of more than %d characters, which Postmark refuses", maxName)})
	}
	for name, list := range map[string][]string{"to": e.To, "cc": e.Cc, "bcc": e.Bcc, "reply_to": e.ReplyTo} {
		for i, text := range list {
			check(fmt.Sprintf("%s[%d]", name, i), text)
		}
	}
	if len(errs) > 0 {
		return errs
	}
	return nil
}
