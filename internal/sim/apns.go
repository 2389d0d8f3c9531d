package sim

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

// APNSOptions configure an APNSServer. Store is required.
type APNSOptions struct {
	Addr  string // where to listen; default a free port of 127.0.0.1
	Store *Store
	Topic string // the app's bundle id; default com.example.stormpost
	Clock func() time.Time
	Log   *slog.Logger
}

// APNSServer is Apple Push Notification service's provider API: POST
// /3/device/{token}, by HTTP/2 over TLS, with provider tokens
// (https://developer.apple.com/documentation/usernotifications/sending-notification-requests-to-apns).
// It refuses what the documentation says is refused; whether a device token is
// registered is up to the faults.
type APNSServer struct {
	*httpServer
	o    APNSOptions
	cert *certificate
	key  *ecdsa.PrivateKey
	p8   []byte

	mu     sync.Mutex
	keys   map[string]*ecdsa.PublicKey // by key id
	tokens map[uint64]newestToken      // by connection
}

// newestToken is the provider token that a connection began to use last.
type newestToken struct {
	token string
	keyID string
	since time.Time
}

// The developer account of an APNSServer.
const (
	APNSKeyID  = "SIMKEY0001"
	APNSTeamID = "SIMTEAM001"
)

// StartAPNS makes a key, listens, and serves until Close. ctx is for starting
// only.
func StartAPNS(ctx context.Context, o APNSOptions) (*APNSServer, error) {
	if o.Store == nil {
		return nil, errors.New("start APNs simulator: no store")
	}
	if o.Topic == "" {
		o.Topic = "com.example.stormpost"
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &APNSServer{o: o, tokens: make(map[uint64]newestToken)}
	var err error
	if s.key, s.p8, err = newES256Key(); err != nil {
		return nil, fmt.Errorf("start APNs simulator: %w", err)
	}
	if s.cert, err = newCertificate("localhost", o.Clock()); err != nil {
		return nil, fmt.Errorf("start APNs simulator: %w", err)
	}
	s.keys = map[string]*ecdsa.PublicKey{APNSKeyID: &s.key.PublicKey}
	documented := func(code string) bool { return apnsErrors[code] != 0 }
	faults := newFaults(o.Clock, checkHTTPFault(documented), StepConnect, StepHeaders, StepBody, StepReply)
	if s.httpServer, err = serveHTTP(ctx, o.Addr, s.cert, faults, http.HandlerFunc(s.send), o.Log); err != nil {
		return nil, fmt.Errorf("start APNs simulator: %w", err)
	}
	return s, nil
}

// Pool holds the certificate that a client must trust.
func (s *APNSServer) Pool() *x509.CertPool { return s.cert.pool }

// CA is that certificate in PEM.
func (s *APNSServer) CA() []byte { return s.cert.pem() }

// Key is the content of the .p8 file, of id APNSKeyID and team APNSTeamID.
func (s *APNSServer) Key() []byte { return s.p8 }

// AddKey makes another key of the developer account, and returns its .p8 file. The
// others stay valid.
func (s *APNSServer) AddKey(keyID string) ([]byte, error) {
	key, file, err := newES256Key()
	if err != nil {
		return nil, fmt.Errorf("add APNs key: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[keyID] = &key.PublicKey
	return file, nil
}

// RevokeKey takes a key back, at once.
func (s *APNSServer) RevokeKey(keyID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.keys, keyID)
}

// Topic is the app's bundle id.
func (s *APNSServer) Topic() string { return s.o.Topic }

// send takes one notification.
func (s *APNSServer) send(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor != 2 {
		w.WriteHeader(http.StatusHTTPVersionNotSupported)
		return
	}
	var did []string
	ev := Event{From: s.o.Topic}
	failed := func(step Step) bool {
		ev.Step = step
		return s.fault(w, r, ev, &did, func(x *Fault) {
			status := x.Code
			if status == 0 {
				status = apnsErrors[x.Error]
			}
			answerAPNS(w, status, x.Error)
		})
	}
	if id := r.Header.Get("apns-id"); id != "" {
		w.Header().Set("apns-id", id)
	}
	if failed(StepHeaders) {
		return
	}
	token, reason := "", s.authorize(r)
	if reason == "" {
		token, reason = s.checkRequest(r)
	}
	if reason != "" {
		answerAPNS(w, apnsErrors[reason], reason)
		return
	}
	body, err := readBody(w, r, RawLimit)
	if err != nil {
		answerAPNS(w, http.StatusRequestEntityTooLarge, "PayloadTooLarge")
		return
	}
	n, reason := parseAPNS(body)
	if reason != "" {
		answerAPNS(w, apnsErrors[reason], reason)
		return
	}
	t := Taken{
		Channel: "push", Provider: "apns", From: s.o.Topic, To: token, Subject: shorten(n.title), MessageID: n.id,
		ReceivedAt: s.o.Clock(), Raw: body, Size: len(body), Via: r.Proto, Conn: connOf(r).number,
	}
	if t.MessageID == "" {
		t.MessageID = r.Header.Get("apns-id")
	}
	ev.To, ev.Subject, ev.MessageID = []string{t.To}, t.Subject, t.MessageID
	if failed(StepBody) {
		return
	}
	t.Faults = did
	if err := s.o.Store.Append(t); err != nil {
		s.o.Log.Error("message not stored", "error", err)
		answerAPNS(w, http.StatusInternalServerError, "InternalServerError")
		return
	}
	if failed(StepReply) {
		return
	}
	w.WriteHeader(http.StatusOK)
}
