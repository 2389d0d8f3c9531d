package sim

import (
	"context"
	"net/http"
	netmail "net/mail"
	"slices"
	"strings"
)

// SendGrid's documented limits:
// https://www.twilio.com/docs/sendgrid/api-reference/mail-send/limitations
const (
	sendGridMaxBody = 30_000_000
	sendGridMaxTo   = 1000
	sendGridMaxArgs = 10_000 // bytes of custom arguments
)

// SendGridServer is POST /v3/mail/send and GET /v3/scopes of SendGrid's API:
// https://www.twilio.com/docs/sendgrid/api-reference/mail-send/mail-send
type SendGridServer struct{ *mailServer }

// StartSendGrid listens and serves until Close. ctx is for starting only.
func StartSendGrid(ctx context.Context, o MailOptions) (*SendGridServer, error) {
	s, err := startMail(ctx, o, mailAPI{
		provider: "sendgrid", maxBody: sendGridMaxBody, errors: sendGridErrors, parse: parseSendGrid, fail: failSendGrid,
		unauthorized: func(r *http.Request) *mailError {
			key := bearer(r)
			switch {
			case key == "":
				return &mailError{http.StatusUnauthorized, "", "authorization required"}
			case o.Key != "" && key != o.Key:
				return &mailError{http.StatusUnauthorized, "", "The provided authorization grant is invalid, expired, or revoked"}
			}
			return nil
		},
		took: func(w http.ResponseWriter, ts []Taken) {
			w.Header().Set("X-Message-Id", ts[0].Reference)
			w.WriteHeader(http.StatusAccepted)
		},
	}, "/v3/mail/send", func(s *mailServer, mux *http.ServeMux) {
		mux.HandleFunc("GET /v3/scopes", func(w http.ResponseWriter, r *http.Request) {
			if bad := s.api.unauthorized(r); bad != nil {
				failSendGrid(w, *bad)
				return
			}
			writeJSON(w, http.StatusOK, map[string]any{"scopes": []string{"mail.send"}})
		})
	})
	if err != nil {
		return nil, err
	}
	return &SendGridServer{s}, nil
}

type sendGridAddress struct {
	Email string `json:"email"`
	Name  string `json:"name"`
}

func (a sendGridAddress) bad() bool {
	p, err := netmail.ParseAddress(a.Email)
	return err != nil || p.Address != a.Email
}

// sendGridMail is the body of POST /v3/mail/send, as far as it concerns messages
// that are not made of templates.
type sendGridMail struct {
	Personalizations []struct {
		To         []sendGridAddress `json:"to"`
		Cc         []sendGridAddress `json:"cc"`
		Bcc        []sendGridAddress `json:"bcc"`
		CustomArgs map[string]string `json:"custom_args"`
	} `json:"personalizations"`
	From        *sendGridAddress  `json:"from"`
	ReplyTo     *sendGridAddress  `json:"reply_to"`
	ReplyToList []sendGridAddress `json:"reply_to_list"`
	Subject     string            `json:"subject"`
	Content     []struct {
		Type  string `json:"type"`
		Value string `json:"value"`
	} `json:"content"`
	Attachments []struct {
		Content     []byte `json:"content"`
		Type        string `json:"type"`
		Filename    string `json:"filename"`
		Disposition string `json:"disposition"`
		ContentID   string `json:"content_id"`
	} `json:"attachments"`
	Headers map[string]string `json:"headers"`
}

// parseSendGrid reads a request, and finds the first thing that is wrong.
func parseSendGrid(r *http.Request, body []byte) ([]Taken, *mailError) {
	bad := func(field, text string) ([]Taken, *mailError) {
		return nil, &mailError{http.StatusBadRequest, field, text}
	}
	if !strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
		return nil, &mailError{http.StatusUnsupportedMediaType, "", "Content-Type should be application/json."}
	}
	var m sendGridMail
	if err := decodeMail(body, &m); err != nil {
		return bad("", "Bad Request: "+err.Error())
	}
	if m.From == nil || m.From.bad() || strings.ContainsFunc(m.From.Email, func(r rune) bool { return r > '~' }) {
		return bad("from.email", "The from email does not contain a valid address.")
	}
	if len(m.Personalizations) == 0 {
		return bad("personalizations", "The personalizations field is required and must have at least one personalization.")
	}
	if field, text := m.check(); text != "" {
		return bad(field, text)
	}
	var ts []Taken
	for _, p := range m.Personalizations {
		seen, args := make(map[string]bool), 0
		for name, value := range p.CustomArgs {
			args += len(name) + len(value)
		}
		if len(p.To) == 0 || args > sendGridMaxArgs {
			return bad("personalizations", "The to array is required, and custom arguments have at most 10000 bytes.")
		}
		for _, a := range slices.Concat(p.To, p.Cc, p.Bcc) {
			if a.bad() || seen[strings.ToLower(a.Email)] {
				return bad("personalizations", "Does not contain a valid address, or has one twice.")
			}
			seen[strings.ToLower(a.Email)] = true
			ts = append(ts, Taken{From: m.From.Email, To: a.Email, Subject: shorten(m.Subject), MessageID: p.CustomArgs["stormpost_id"]})
		}
	}
	if len(ts) > sendGridMaxTo {
		return bad("personalizations", "There are more than 1000 recipients.")
	}
	return ts, nil
}

var sendGridReserved = []string{
	"x-sg-id", "x-sg-eid", "received", "dkim-signature", "content-type", "content-transfer-encoding", "to", "from", "subject", "reply-to", "cc", "bcc",
}

// check is of what all personalizations share.
func (m *sendGridMail) check() (field, text string) {
	if m.Subject == "" {
		return "subject", "The subject is required."
	}
	if len(m.Content) == 0 {
		return "content", "Unless a valid template_id is provided, the content parameter is required."
	}
	for i, c := range m.Content {
		switch {
		case c.Type == "" || c.Value == "":
			return "content", "The content value must be a string at least one character in length."
		case c.Type == "text/plain" && i > 0, c.Type == "text/html" && i > 1:
			return "content", "If present, text/plain and text/html may only be provided once, in this order, before all others."
		}
	}
	if m.ReplyTo != nil && len(m.ReplyToList) > 0 {
		return "reply_to", "Want reply_to or reply_to_list, not both."
	}
	for _, a := range m.ReplyToList {
		if a.bad() {
			return "reply_to_list", "Does not contain a valid address."
		}
	}
	for _, a := range m.Attachments {
		if len(a.Content) == 0 || a.Filename == "" || a.Disposition == "inline" && a.ContentID == "" || !slices.Contains([]string{"", "inline", "attachment"}, a.Disposition) {
			return "attachments", "The attachment needs content and filename, and inline a content_id."
		}
	}
	for name := range m.Headers {
		if slices.Contains(sendGridReserved, strings.ToLower(name)) {
			return "headers", "The header " + name + " is reserved."
		}
	}
	return "", ""
}

// sendGridErrors are named by SendGrid's statuses alone; only an account that
// has used up its credits has another one for 401.
var sendGridErrors = map[string]mailError{
	"credits exceeded": {http.StatusUnauthorized, "", "Maximum credits exceeded"},
	"access forbidden": {http.StatusForbidden, "", "access forbidden"},
}

func failSendGrid(w http.ResponseWriter, e mailError) {
	var field any
	if e.code != "" {
		field = e.code
	}
	writeJSON(w, e.status, map[string]any{"errors": []any{map[string]any{"message": e.text, "field": field, "help": nil}}})
}
