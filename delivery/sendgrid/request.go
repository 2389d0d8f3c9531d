package sendgrid

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/stormpost/stormpost/internal/mail"
	"github.com/stormpost/stormpost/internal/message"
)

// sendRequest is the body of POST /v3/mail/send.
type sendRequest struct {
	Personalizations []personalization `json:"personalizations"`
	From             address           `json:"from"`
	ReplyTo          []address         `json:"reply_to_list,omitempty"`
	Subject          string            `json:"subject"`
	Content          []content         `json:"content"`
	Attachments      []attachment      `json:"attachments,omitempty"`
	Headers          map[string]string `json:"headers"`
}

type personalization struct {
	To         []address         `json:"to"`
	CustomArgs map[string]string `json:"custom_args"`
}

type address struct {
	Email string `json:"email"`
	Name  string `json:"name,omitempty"`
}

type content struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

type attachment struct {
	Content     []byte `json:"content"` // base64
	Type        string `json:"type"`
	Filename    string `json:"filename"`
	Disposition string `json:"disposition"`
	ContentID   string `json:"content_id,omitempty"`
}

// reserved are the header fields that SendGrid refuses, beside those that no
// message may set: its own, and those it makes.
var reserved = map[string]bool{"x-sg-id": true, "x-sg-eid": true}

func addressOf(a mail.Address) address { return address{a.Spec(), a.Name} }

// encode is the request for one message. An error is the message's own fault,
// and a *mail.Unfit.
func encode(env *message.Envelope) ([]byte, error) {
	l, err := mail.NewLetter(env)
	if err != nil {
		return nil, err
	}
	r := sendRequest{
		Personalizations: []personalization{{[]address{addressOf(l.To)}, map[string]string{"stormpost_id": env.ID.String()}}},
		From:             addressOf(l.From), Subject: l.Subject, Headers: map[string]string{"Message-ID": "<" + l.MessageID + ">"},
	}
	for _, a := range l.ReplyTo {
		r.ReplyTo = append(r.ReplyTo, addressOf(a))
	}
	for _, c := range []content{{"text/plain", l.Text}, {"text/html", l.HTML}} { // in this order, SendGrid demands
		if c.Value != "" {
			r.Content = append(r.Content, c)
		}
	}
	if len(r.Content) == 0 {
		r.Content = []content{{"text/plain", " "}} // SendGrid wants one
	}
	for _, h := range l.Headers {
		if reserved[strings.ToLower(h.Name)] {
			return nil, &mail.Unfit{Code: "5.6.0", Reason: "headers." + h.Name + " is SendGrid's own"}
		}
		r.Headers[h.Name] = h.Value
	}
	for _, f := range l.Files {
		a := attachment{Content: f.Content, Type: f.Type, Filename: f.Name, Disposition: "attachment"}
		if f.ID != "" {
			a.Disposition, a.ContentID = "inline", f.ID
		}
		r.Attachments = append(r.Attachments, a)
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // or each < takes six bytes
	if err := e.Encode(r); err != nil {
		return nil, err
	}
	if b.Len() > MaxBytes {
		return nil, &mail.Unfit{Code: "5.3.4", Reason: fmt.Sprintf("the message has %d bytes, SendGrid takes %d", b.Len(), MaxBytes)}
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// Check says what of e SendGrid would refuse. It fails with
// message.FieldErrors.
func Check(e *message.Email) error {
	errs := mail.EmptyFiles(e, "SendGrid")
	if e.Subject == "" {
		errs = append(errs, message.FieldError{Field: "subject", Problem: "is required by SendGrid"})
	}
	// https://www.twilio.com/docs/sendgrid/api-reference/mail-send/limitations
	if a, err := mail.ParseMailbox("from", e.From); err == nil && a.UTF8() {
		errs = append(errs, message.FieldError{Field: "from", Problem: "has an address outside ASCII, which SendGrid refuses"})
	}
	for name := range e.Headers {
		if reserved[strings.ToLower(name)] {
			errs = append(errs, message.FieldError{Field: "headers." + name, Problem: "is SendGrid's own"})
		}
	}
	if len(errs) > 0 {
		return errs
	}
	return nil
}
