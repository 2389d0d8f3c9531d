package sim

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	netmail "net/mail"
	"regexp"
	"strings"
	"sync/atomic"
	"time"
)

// SES's documented limits: https://docs.aws.amazon.com/ses/latest/dg/quotas.html
const (
	sesMaxMessage    = 40 << 20
	sesMaxBody       = sesMaxMessage/3*4 + 64<<10
	sesMaxRecipients = 50
	sesMaxLine       = 998 // 1,000 with its end
)

var sesTag = regexp.MustCompile(`^[A-Za-z0-9_.@-]{1,256}$`)

// SESOptions configure an SESServer. Store is required.
type SESOptions struct {
	Addr  string // where to listen; default a free port of 127.0.0.1
	Store *Store
	// AccessKeyID and SecretKey sign good requests to Region. Without a secret
	// any signature is good.
	AccessKeyID, SecretKey, Region string
	TLS                            bool // HTTPS with a certificate that Pool trusts; else clear text
	Clock                          func() time.Time
	Log                            *slog.Logger
}

// SESServer is GetAccount and SendEmail of Amazon SES's API v2, with Content.Raw:
// https://docs.aws.amazon.com/ses/latest/APIReference-V2/API_SendEmail.html
// It verifies signatures, and refuses what the documentation says is refused.
type SESServer struct {
	*httpServer
	o      SESOptions
	cert   *certificate
	number atomic.Uint64
}

// StartSES listens and serves until Close. ctx is for starting only.
func StartSES(ctx context.Context, o SESOptions) (*SESServer, error) {
	if o.Store == nil {
		return nil, errors.New("start SES simulator: no store")
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &SESServer{o: o}
	var err error
	if o.TLS {
		if s.cert, err = newCertificate("localhost", o.Clock()); err != nil {
			return nil, fmt.Errorf("start SES simulator: %w", err)
		}
	}
	documented := func(code string) bool { return sesErrors[code] != 0 }
	faults := newFaults(o.Clock, checkHTTPFault(documented), StepConnect, StepHeaders, StepBody, StepReply)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v2/email/outbound-emails", s.send)
	mux.HandleFunc("GET /v2/email/account", s.account)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { answerSES(w, "UnknownOperationException", "") })
	if s.httpServer, err = serveHTTP(ctx, o.Addr, s.cert, faults, mux, o.Log); err != nil {
		return nil, fmt.Errorf("start SES simulator: %w", err)
	}
	return s, nil
}

// Pool holds the certificate that a client must trust, with TLS.
func (s *SESServer) Pool() *x509.CertPool {
	if s.cert == nil {
		return nil
	}
	return s.cert.pool
}

// account answers GetAccount.
func (s *SESServer) account(w http.ResponseWriter, r *http.Request) {
	if s.o.SecretKey != "" {
		if kind, problem := s.verify(r, nil); kind != "" {
			answerSES(w, kind, problem)
			return
		}
	}
	writeJSON(w, http.StatusOK, map[string]any{"SendingEnabled": true, "ProductionAccessEnabled": true, "EnforcementStatus": "HEALTHY"})
}

// send takes one message.
func (s *SESServer) send(w http.ResponseWriter, r *http.Request) {
	var did []string
	var ev Event
	failed := func(step Step) bool {
		ev.Step = step
		return s.fault(w, r, ev, &did, func(x *Fault) {
			name := x.Error
			for known, status := range sesErrors {
				if name == "" && status == x.Code {
					name = known
				}
			}
			writeSES(w, cmp.Or(x.Code, sesErrors[name]), name, "As simulated.")
		})
	}
	if failed(StepHeaders) {
		return
	}
	body, err := readBody(w, r, sesMaxBody)
	if err != nil {
		writeSES(w, http.StatusRequestEntityTooLarge, "RequestEntityTooLargeException", "The request is too large.")
		return
	}
	if s.o.SecretKey != "" {
		if kind, problem := s.verify(r, body); kind != "" {
			answerSES(w, kind, problem)
			return
		}
	}
	m, kind, problem := parseSES(body)
	if kind != "" {
		answerSES(w, kind, problem)
		return
	}
	ts := m.taken(r.Proto, connOf(r).number, s.o.Clock())
	ev.From, ev.To, ev.Subject, ev.MessageID = ts[0].From, m.Destination.all(), ts[0].Subject, ts[0].MessageID
	if failed(StepBody) {
		return
	}
	id := fmt.Sprintf("%016x-%s-000000", s.number.Add(1), newUUID())
	for i := range ts {
		ts[i].Reference, ts[i].Faults = id, did
	}
	if err := s.o.Store.Append(ts...); err != nil {
		s.o.Log.Error("message not stored", "error", err)
		answerSES(w, "InternalFailure", "")
		return
	}
	if failed(StepReply) {
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"MessageId": id})
}

// sesMail is the body of SendEmail, as far as it concerns raw messages.
type sesMail struct {
	FromEmailAddress     string
	Destination          sesDestination
	ReplyToAddresses     []string
	ConfigurationSetName string
	EmailTags            []struct{ Name, Value string }
	Content              struct {
		Raw *struct{ Data []byte }
	}
}

type sesDestination struct{ ToAddresses, CcAddresses, BccAddresses []string }

func (d *sesDestination) all() []string {
	return append(append(append([]string(nil), d.ToAddresses...), d.CcAddresses...), d.BccAddresses...)
}

// parseSES reads a request body, and checks it as SES does.
func parseSES(body []byte) (m *sesMail, kind, problem string) {
	m = new(sesMail)
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(m); err != nil {
		return nil, "BadRequestException", "The body can't be read: " + err.Error()
	}
	bad := func(format string, args ...any) (*sesMail, string, string) {
		return nil, "BadRequestException", fmt.Sprintf(format, args...)
	}
	if m.Content.Raw == nil || len(m.Content.Raw.Data) == 0 {
		return bad("Content.Raw.Data is missing; this simulator takes raw messages alone.")
	}
	all := m.Destination.all()
	if len(all) == 0 || len(all) > sesMaxRecipients {
		return bad("Want 1 to %d recipients.", sesMaxRecipients)
	}
	for _, a := range append(all, m.FromEmailAddress) {
		if p, err := netmail.ParseAddress(a); err != nil || strings.ContainsFunc(p.Address, func(r rune) bool { return r > 0x7e }) {
			return bad("Local address contains control or whitespace, or is not ASCII: %q", a)
		}
	}
	for _, t := range m.EmailTags {
		if !sesTag.MatchString(t.Name) || !sesTag.MatchString(t.Value) {
			return bad("Invalid tag.")
		}
	}
	raw := m.Content.Raw.Data
	if len(raw) > sesMaxMessage {
		return bad("The message is longer than %d bytes.", sesMaxMessage)
	}
	for line := range bytes.SplitSeq(raw, []byte("\n")) {
		if len(bytes.TrimSuffix(line, []byte("\r"))) > sesMaxLine {
			return bad("A line is longer than 1000 characters.")
		}
	}
	mail, err := netmail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		return bad("The message can't be read: %v", err)
	}
	if _, err := mail.Header.AddressList("From"); err != nil {
		return nil, "MessageRejected", "Missing or invalid From header."
	}
	return m, "", ""
}

// taken is one line for each recipient.
func (m *sesMail) taken(via string, conn uint64, at time.Time) (ts []Taken) {
	raw := m.Content.Raw.Data
	subject, id := subjectAndID(raw)
	for _, to := range m.Destination.all() {
		ts = append(ts, Taken{
			Channel: "email", Provider: "ses", From: bareAddress(m.FromEmailAddress), To: bareAddress(to), Subject: subject, MessageID: id,
			ReceivedAt: at, Raw: raw[:min(len(raw), RawLimit)], Size: len(raw), Via: via, Conn: conn,
		})
	}
	return ts
}

// sesErrors are the statuses of documented errors: SendEmail's own, and
// https://docs.aws.amazon.com/ses/latest/APIReference-V2/CommonErrors.html
var sesErrors = map[string]int{
	"AccountSuspendedException": 400, "BadRequestException": 400, "LimitExceededException": 400, "MailFromDomainNotVerifiedException": 400,
	"MessageRejected": 400, "NotFoundException": 404, "SendingPausedException": 400, "TooManyRequestsException": 429,
	"AccessDeniedException": 403, "ExpiredTokenException": 403, "IncompleteSignature": 400, "InternalFailure": 500, "InvalidClientTokenId": 403,
	"InvalidSignatureException": 403, "MissingAuthenticationToken": 403, "NotAuthorized": 400, "OptInRequired": 403, "RequestExpired": 400,
	"ServiceUnavailable": 503, "ThrottlingException": 400, "UnknownOperationException": 404, "UnrecognizedClientException": 403, "ValidationError": 400,
}

func answerSES(w http.ResponseWriter, kind, text string) { writeSES(w, sesErrors[kind], kind, text) }

func writeSES(w http.ResponseWriter, status int, kind, text string) {
	w.Header().Set("x-amzn-ErrorType", kind)
	w.Header().Set("x-amzn-RequestId", newUUID())
	writeJSON(w, status, map[string]string{"message": text})
}
