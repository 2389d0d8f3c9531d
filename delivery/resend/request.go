package resend

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/stormpost/stormpost/internal/mail"
	"github.com/stormpost/stormpost/internal/message"
)

// sendRequest is the body of POST /emails.
type sendRequest struct {
	From        string            `json:"from"`
	To          []string          `json:"to"`
	Subject     string            `json:"subject"`
	ReplyTo     []string          `json:"reply_to,omitempty"`
	HTML        string            `json:"html,omitempty"`
	Text        string            `json:"text,omitempty"`
	Headers     map[string]string `json:"headers,omitempty"`
	Attachments []attachment      `json:"attachments,omitempty"`
	Tags        []tag             `json:"tags"`
}

type attachment struct {
	Content     []byte `json:"content"` // base64
	Filename    string `json:"filename"`
	ContentType string `json:"content_type"`
	ContentID   string `json:"content_id,omitempty"`
}

type tag struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// encode is the request for one message, the same at every attempt. An error is
// the message's own fault, and a *mail.Unfit.
func encode(env *message.Envelope) ([]byte, error) {
	l, err := mail.NewLetter(env)
	if err != nil {
		return nil, err
	}
	r := sendRequest{
		From: l.From.Mailbox(), To: []string{l.To.Mailbox()}, Subject: l.Subject, HTML: l.HTML, Text: l.Text,
		Headers: make(map[string]string, len(l.Headers)), Tags: []tag{{"stormpost_id", env.ID.String()}},
	}
	if l.Text == "" && l.HTML == "" {
		r.Text = " " // Resend wants one of the two
	}
	for _, a := range l.ReplyTo {
		r.ReplyTo = append(r.ReplyTo, a.Mailbox())
	}
	for _, h := range l.Headers {
		r.Headers[h.Name] = h.Value
	}
	for _, f := range l.Files {
		r.Attachments = append(r.Attachments, attachment{f.Content, f.Name, f.Type, f.ID})
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(r); err != nil {
		return nil, err
	}
	if b.Len() > MaxBytes {
		return nil, &mail.Unfit{Code: "5.3.4", Reason: fmt.Sprintf("the message has %d bytes, Resend takes %d", b.Len(), MaxBytes)}
	}
	return b.Bytes(), nil
}

// Check says what of e Resend would refuse. It fails with message.FieldErrors.
func Check(e *message.Email) error {
	errs := mail.EmptyFiles(e, "Resend")
	if e.Subject == "" {
		errs = append(errs, message.FieldError{Field: "subject", Problem: "is required by Resend"})
	}
	if len(errs) > 0 {
		return errs
	}
	return nil
}
