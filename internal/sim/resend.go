package sim

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	netmail "net/mail"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// Resend's documented limits: https://resend.com/docs/api-reference/emails/send-email
const (
	resendMaxBody = 40_000_000
	resendMaxTo   = 50
	resendMaxKey  = 256
	resendKeyLife = 24 * time.Hour
	resendMaxKeys = 100_000 // keys remembered at most
)

var resendTag = regexp.MustCompile(`^[A-Za-z0-9_-]{1,256}$`)

// ResendOptions configure a ResendServer. Store is required.
type ResendOptions struct {
	Addr  string // where to listen; default a free port of 127.0.0.1
	Store *Store
	Key   string // the API key; empty: any is good
	// SendingOnly is what the key may do.
	SendingOnly bool
	TLS         bool // HTTPS with a certificate that Pool trusts; else clear text
	Clock       func() time.Time
	Log         *slog.Logger
}

// ResendServer is Resend's API for one email: POST /emails, with its
// Idempotency-Key, and GET /domains. A key's first answer is remembered for 24 h, on disk with
// the message, so that after any kill a repeat is still absorbed.
type ResendServer struct {
	*httpServer
	o    ResendOptions
	cert *certificate

	mu   sync.Mutex
	keys map[string]*resendKey
}

// resendKey is an idempotency key in use.
type resendKey struct {
	digest string // of the body
	id     string // answered; empty while the first request is under way
	at     time.Time
}

// StartResend listens and serves until Close. ctx is for starting only.
func StartResend(ctx context.Context, o ResendOptions) (*ResendServer, error) {
	if o.Store == nil {
		return nil, errors.New("start Resend simulator: no store")
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &ResendServer{o: o, keys: make(map[string]*resendKey)}
	err := o.Store.allOf("resend", func(t Taken) error {
		if t.Key != "" {
			s.remember(t.Key, &resendKey{t.Digest, t.Reference, t.ReceivedAt})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("start Resend simulator: %w", err)
	}
	if o.TLS {
		if s.cert, err = newCertificate("localhost", o.Clock()); err != nil {
			return nil, fmt.Errorf("start Resend simulator: %w", err)
		}
	}
	documented := func(code string) bool { _, ok := resendErrors[code]; return ok }
	faults := newFaults(o.Clock, checkHTTPFault(documented), StepConnect, StepHeaders, StepBody, StepReply)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /emails", s.send)
	mux.HandleFunc("GET /domains", s.domains)
	mux.HandleFunc("/emails", func(w http.ResponseWriter, _ *http.Request) { answerResend(w, resendErrors["method_not_allowed"]) })
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { answerResend(w, resendErrors["not_found"]) })
	if s.httpServer, err = serveHTTP(ctx, o.Addr, s.cert, faults, mux, o.Log); err != nil {
		return nil, fmt.Errorf("start Resend simulator: %w", err)
	}
	return s, nil
}

// Pool holds the certificate that a client must trust, with TLS.
func (s *ResendServer) Pool() *x509.CertPool {
	if s.cert == nil {
		return nil
	}
	return s.cert.pool
}

// remember keeps a key, and forgets what is over. Its caller holds mu, or is
// alone.
func (s *ResendServer) remember(name string, k *resendKey) {
	if len(s.keys) >= resendMaxKeys {
		for old, k := range s.keys {
			if k.id != "" && s.o.Clock().Sub(k.at) > resendKeyLife {
				delete(s.keys, old)
			}
		}
	}
	s.keys[name] = k
}

// begin takes a key for a request. done is the answer that its first request
// had, or nil; then end must be called.
func (s *ResendServer) begin(name, digest string) (done *resendKey, bad *resendError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.keys[name]
	switch {
	case k == nil || k.id != "" && s.o.Clock().Sub(k.at) > resendKeyLife:
		s.remember(name, &resendKey{digest: digest, at: s.o.Clock()})
		return nil, nil
	case k.digest != digest:
		e := resendErrors["invalid_idempotent_request"]
		return nil, &e
	case k.id == "":
		e := resendErrors["concurrent_idempotent_requests"]
		return nil, &e
	}
	return k, nil
}

// end tells what became of a key's first request: its answer, or that it was
// refused, so that the key is free again.
func (s *ResendServer) end(name, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id == "" {
		delete(s.keys, name)
	} else {
		s.keys[name].id = id
	}
}

// keyError names what is wrong with the key.
func (s *ResendServer) keyError(r *http.Request) string {
	switch key := bearer(r); {
	case key == "":
		return "missing_api_key"
	case s.o.Key != "" && key != s.o.Key:
		return "invalid_api_key"
	}
	return ""
}

// bearer is the token of an Authorization header, or nothing.
func bearer(r *http.Request) string {
	scheme, key, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return key
}

// domains lists none, to keys that may do more than send.
func (s *ResendServer) domains(w http.ResponseWriter, r *http.Request) {
	name := s.keyError(r)
	if name == "" && s.o.SendingOnly {
		name = "restricted_api_key"
	}
	if name != "" {
		answerResend(w, resendErrors[name])
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"data": []any{}})
}

// send takes one email.
func (s *ResendServer) send(w http.ResponseWriter, r *http.Request) {
	var did []string
	var ev Event
	failed := func(step Step) bool {
		ev.Step = step
		return s.fault(w, r, ev, &did, func(x *Fault) { answerResend(w, resendFault(x)) })
	}
	if failed(StepHeaders) {
		return
	}
	if name := s.keyError(r); name != "" {
		answerResend(w, resendErrors[name])
		return
	}
	body, err := readBody(w, r, resendMaxBody)
	if err != nil {
		answerResend(w, resendError{http.StatusRequestEntityTooLarge, "validation_error", "The request is larger than 40 MB."})
		return
	}
	m, bad := parseResend(body)
	if bad != nil {
		answerResend(w, *bad)
		return
	}
	ts := m.taken(body, r.Proto, connOf(r).number, s.o.Clock())
	ev.From, ev.To, ev.Subject, ev.MessageID = ts[0].From, m.To, ts[0].Subject, ts[0].MessageID
	sum := sha256.Sum256(body)
	name, digest, id := r.Header.Get("Idempotency-Key"), hex.EncodeToString(sum[:]), newUUID()
	if len(r.Header["Idempotency-Key"]) > 0 && (name == "" || len(name) > resendMaxKey) {
		answerResend(w, resendErrors["invalid_idempotency_key"])
		return
	}
	if name != "" {
		done, bad := s.begin(name, digest)
		switch {
		case bad != nil:
			answerResend(w, *bad)
			return
		case done != nil:
			writeJSON(w, http.StatusOK, map[string]string{"id": done.id})
			return
		}
		stored := false
		defer func() { // also when a fault ends the connection
			if !stored {
				s.end(name, "")
			}
		}()
		if failed(StepBody) || !s.store(w, ts, id, name, digest, did) {
			return
		}
		stored = true
		s.end(name, id)
	} else if failed(StepBody) || !s.store(w, ts, id, "", "", did) {
		return
	}
	if failed(StepReply) {
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"id": id})
}

func (s *ResendServer) store(w http.ResponseWriter, ts []Taken, id, key, digest string, did []string) bool {
	for i := range ts {
		ts[i].Reference, ts[i].Key, ts[i].Digest, ts[i].Faults = id, key, digest, did
		if ts[i].MessageID == "" {
			ts[i].MessageID = id
		}
	}
	if err := s.o.Store.Append(ts...); err != nil {
		s.o.Log.Error("message not stored", "error", err)
		answerResend(w, resendErrors["application_error"])
		return false
	}
	return true
}

// resendMail is the body of POST /emails.
type resendMail struct {
	From        string            `json:"from"`
	To          oneOrMore         `json:"to"`
	Cc          oneOrMore         `json:"cc"`
	Bcc         oneOrMore         `json:"bcc"`
	ReplyTo     oneOrMore         `json:"reply_to"`
	Subject     string            `json:"subject"`
	HTML        string            `json:"html"`
	Text        string            `json:"text"`
	Headers     map[string]string `json:"headers"`
	ScheduledAt string            `json:"scheduled_at"`
	Attachments []struct {
		Content     []byte `json:"content"`
		Path        string `json:"path"`
		Filename    string `json:"filename"`
		ContentType string `json:"content_type"`
		ContentID   string `json:"content_id"`
	} `json:"attachments"`
	Tags []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"tags"`
}

// oneOrMore is a list that may be written as its one string.
type oneOrMore []string

// UnmarshalJSON reads either.
func (l *oneOrMore) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		*l = make(oneOrMore, 1)
		return json.Unmarshal(b, &(*l)[0])
	}
	return json.Unmarshal(b, (*[]string)(l))
}

// parseResend reads a request body, and checks it as Resend does.
func parseResend(body []byte) (*resendMail, *resendError) {
	var m resendMail
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return nil, &resendError{http.StatusBadRequest, "validation_error", "The body can't be read: " + err.Error()}
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, &resendError{http.StatusBadRequest, "validation_error", "More follows the body."}
	}
	return &m, m.check()
}

// check finds the first thing that is wrong.
func (m *resendMail) check() *resendError {
	invalid := func(name, format string, args ...any) *resendError {
		return &resendError{http.StatusUnprocessableEntity, name, fmt.Sprintf(format, args...)}
	}
	for field, there := range map[string]bool{
		"from": m.From != "", "to": len(m.To) > 0, "subject": m.Subject != "", "html or text": m.HTML != "" || m.Text != "",
	} {
		if !there {
			return invalid("missing_required_field", "Missing %s field.", field)
		}
	}
	if _, err := netmail.ParseAddress(m.From); err != nil {
		return invalid("invalid_from_address", "Invalid from field.")
	}
	for _, list := range []oneOrMore{m.To, m.Cc, m.Bcc, m.ReplyTo} {
		for _, a := range list {
			if _, err := netmail.ParseAddress(a); err != nil {
				return invalid("validation_error", "Invalid address %q.", a)
			}
		}
	}
	if len(m.To) > resendMaxTo {
		return invalid("validation_error", "At most %d recipients.", resendMaxTo)
	}
	for _, a := range m.Attachments {
		if (len(a.Content) == 0) == (a.Path == "") {
			return invalid("invalid_attachment", "Attachment must have either a content or path.")
		}
	}
	for _, t := range m.Tags {
		if !resendTag.MatchString(t.Name) || !resendTag.MatchString(t.Value) {
			return invalid("validation_error", "Tags should only contain ASCII letters, numbers, underscores, or dashes.")
		}
	}
	return nil
}

// taken is one line for each recipient.
func (m *resendMail) taken(body []byte, via string, conn uint64, at time.Time) (ts []Taken) {
	id := ""
	for _, t := range m.Tags {
		if t.Name == "stormpost_id" {
			id = t.Value
		}
	}
	for _, to := range slices.Concat(m.To, m.Cc, m.Bcc) {
		ts = append(ts, Taken{
			Channel: "email", Provider: "resend", From: bareAddress(m.From), To: bareAddress(to), Subject: shorten(m.Subject), MessageID: id,
			ReceivedAt: at, Raw: body[:min(len(body), RawLimit)], Size: len(body), Via: via, Conn: conn,
		})
	}
	return ts
}

// bareAddress is a mailbox that was checked, without its name.
func bareAddress(mailbox string) string {
	a, err := netmail.ParseAddress(mailbox)
	if err != nil {
		return mailbox
	}
	return a.Address
}

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// resendError is an error as Resend answers it.
type resendError struct {
	status  int
	name    string
	message string
}

// resendErrors are the documented errors by name; validation_error also comes
// with 403 and 422 (https://resend.com/docs/api-reference/errors).
var resendErrors = func() map[string]resendError {
	all := make(map[string]resendError)
	for _, e := range []resendError{
		{400, "invalid_idempotency_key", "The key must have 1 to 256 characters."},
		{400, "validation_error", "A field is not as it should be."},
		{401, "missing_api_key", "There is no API key in the authorization header."},
		{401, "restricted_api_key", "This API key may only send emails."},
		{403, "invalid_api_key", "The API key is not valid."},
		{404, "not_found", "There is no such endpoint."},
		{405, "method_not_allowed", "The path doesn't have this method."},
		{409, "invalid_idempotent_request", "The key was used with another payload."},
		{409, "concurrent_idempotent_requests", "The first request with this key is still in progress."},
		{422, "invalid_attachment", "An attachment has neither content nor path."},
		{422, "invalid_from_address", "The from field is not valid."},
		{422, "invalid_access", "Access must be full_access or sending_access."},
		{422, "invalid_parameter", "A parameter is not a UUID."},
		{422, "invalid_region", "There is no such region."},
		{422, "missing_required_field", "A required field is missing."},
		{429, "daily_quota_exceeded", "The day's quota is used up."},
		{429, "monthly_quota_exceeded", "The month's quota is used up."},
		{429, "rate_limit_exceeded", "There were too many requests."},
		{451, "security_error", "The request may not be safe."},
		{500, "application_error", "Something unexpected happened."},
		{500, "internal_server_error", "Something unexpected happened."},
	} {
		all[e.name] = e
	}
	return all
}()

// resendFault is the error that a fault's Answer asks for: by Error, by Code, or
// by both for what isn't documented.
func resendFault(x *Fault) resendError {
	e, ok := resendErrors[x.Error]
	if !ok {
		e = resendError{name: x.Error, message: "As simulated."}
		for _, name := range []string{"rate_limit_exceeded", "application_error", "invalid_api_key", "missing_required_field"} {
			if known := resendErrors[name]; x.Error == "" && known.status == x.Code {
				e = known
			}
		}
	}
	if x.Code != 0 {
		e.status = x.Code
	}
	return e
}

func answerResend(w http.ResponseWriter, e resendError) {
	writeJSON(w, e.status, map[string]any{"statusCode": e.status, "name": e.name, "message": e.message})
}
