package sim

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	netmail "net/mail"
	"time"
)

// MailOptions configure a simulator of an API for email. Store is required.
type MailOptions struct {
	Addr  string // where to listen; default a free port of 127.0.0.1
	Store *Store
	Key   string // empty: any is good
	TLS   bool   // HTTPS with a certificate that Pool trusts; else clear text
	Clock func() time.Time
	Log   *slog.Logger
}

// mailAPI is how a vendor's API is spoken.
type mailAPI struct {
	provider string // as in Taken
	maxBody  int64
	// errors are the documented ones, by what a Fault calls them.
	errors map[string]mailError
	// unauthorized says what is wrong with a request's key, or nothing.
	unauthorized func(r *http.Request) *mailError
	// parse reads and checks a request's body. The first line of several is for
	// the Event; References are not in it yet.
	parse func(r *http.Request, body []byte) ([]Taken, *mailError)
	fail  func(w http.ResponseWriter, e mailError)
	took  func(w http.ResponseWriter, ts []Taken)
}

// mailError is a refusal. What code is depends on the vendor; it may be empty.
type mailError struct {
	status int
	code   string
	text   string
}

// mailServer is a simulator of a mailAPI.
type mailServer struct {
	*httpServer
	o    MailOptions
	api  mailAPI
	cert *certificate
}

// startMail listens and serves what mux routes, until Close.
func startMail(ctx context.Context, o MailOptions, api mailAPI, path string, routes func(s *mailServer, mux *http.ServeMux)) (*mailServer, error) {
	fail := func(err error) (*mailServer, error) {
		return nil, fmt.Errorf("start %s simulator: %w", api.provider, err)
	}
	if o.Store == nil {
		return fail(errors.New("no store"))
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &mailServer{o: o, api: api}
	var err error
	if o.TLS {
		if s.cert, err = newCertificate("localhost", o.Clock()); err != nil {
			return fail(err)
		}
	}
	documented := func(code string) bool { _, ok := api.errors[code]; return ok }
	faults := newFaults(o.Clock, checkHTTPFault(documented), StepConnect, StepHeaders, StepBody, StepReply)
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+path, s.send)
	routes(s, mux)
	if s.httpServer, err = serveHTTP(ctx, o.Addr, s.cert, faults, mux, o.Log); err != nil {
		return fail(err)
	}
	return s, nil
}

// Pool holds the certificate that a client must trust, with TLS.
func (s *mailServer) Pool() *x509.CertPool {
	if s.cert == nil {
		return nil
	}
	return s.cert.pool
}

// send takes one message.
func (s *mailServer) send(w http.ResponseWriter, r *http.Request) {
	var did []string
	var ev Event
	failed := func(step Step) bool {
		ev.Step = step
		return s.fault(w, r, ev, &did, func(x *Fault) { s.api.fail(w, s.errorOf(x)) })
	}
	if failed(StepHeaders) {
		return
	}
	if bad := s.api.unauthorized(r); bad != nil {
		s.api.fail(w, *bad)
		return
	}
	body, err := readBody(w, r, s.api.maxBody)
	if err != nil {
		s.api.fail(w, mailError{http.StatusRequestEntityTooLarge, "", "The request is too large."})
		return
	}
	ts, bad := s.api.parse(r, body)
	if bad != nil {
		s.api.fail(w, *bad)
		return
	}
	ev.From, ev.Subject, ev.MessageID = ts[0].From, ts[0].Subject, ts[0].MessageID
	for _, t := range ts {
		ev.To = append(ev.To, t.To)
	}
	if failed(StepBody) {
		return
	}
	id := newUUID()
	for i := range ts {
		t := &ts[i]
		t.Channel, t.Provider, t.ReceivedAt, t.Via, t.Conn = "email", s.api.provider, s.o.Clock(), r.Proto, connOf(r).number
		t.Raw, t.Size, t.Reference, t.Faults, t.MessageID = body[:min(len(body), RawLimit)], len(body), id, did, cmp.Or(t.MessageID, id)
	}
	if err := s.o.Store.Append(ts...); err != nil {
		s.o.Log.Error("message not stored", "error", err)
		s.api.fail(w, mailError{http.StatusInternalServerError, "", "Something unexpected happened."})
		return
	}
	if failed(StepReply) {
		return
	}
	s.api.took(w, ts)
}

// errorOf is what a fault's Answer asks for: by Error, by Code, or by both for
// what isn't documented.
func (s *mailServer) errorOf(x *Fault) mailError {
	e, ok := s.api.errors[x.Error]
	if !ok {
		e = mailError{code: x.Error, text: "As simulated."}
	}
	e.status = cmp.Or(x.Code, e.status)
	return e
}

// decodeMail reads a body that has no member but those of v.
func decodeMail(body []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("more follows the body")
	}
	return nil
}

// addressList reads a header's list of mailboxes, which may be empty.
func addressList(text string) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	list, err := netmail.ParseAddressList(text)
	var all []string
	for _, a := range list {
		all = append(all, a.Address)
	}
	return all, err
}
