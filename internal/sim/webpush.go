package sim

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"
)

// WebPushOptions configure a WebPushServer. Store is required.
type WebPushOptions struct {
	Addr  string // where to listen; default a free port of 127.0.0.1
	Store *Store
	Clock func() time.Time
	Log   *slog.Logger
}

// WebPushServer is a browser's push service (RFC 8030) that knows its senders by
// VAPID (RFC 8292), and the browsers behind it, which decrypt what they get (RFC
// 8291). Whether a subscription is still good is up to the faults.
type WebPushServer struct {
	*httpServer
	o      WebPushOptions
	cert   *certificate
	seed   []byte // of the subscriptions' keys
	number atomic.Uint64
}

// Subscription is what a page gets of its browser, and gives to its server.
type Subscription struct {
	Endpoint string            `json:"endpoint"`
	Keys     map[string]string `json:"keys"` // p256dh and auth, in base64url
}

// StartWebPush listens and serves until Close. ctx is for starting only.
func StartWebPush(ctx context.Context, o WebPushOptions) (*WebPushServer, error) {
	if o.Store == nil {
		return nil, errors.New("start Web Push simulator: no store")
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &WebPushServer{o: o, seed: make([]byte, 32)}
	_, _ = rand.Read(s.seed) // never fails
	var err error
	if s.cert, err = newCertificate("localhost", o.Clock()); err != nil {
		return nil, fmt.Errorf("start Web Push simulator: %w", err)
	}
	documented := func(code string) bool { return webPushErrors[code] != 0 }
	faults := newFaults(o.Clock, checkHTTPFault(documented), StepConnect, StepHeaders, StepBody, StepReply)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /push/{name}", s.send)
	if s.httpServer, err = serveHTTP(ctx, o.Addr, s.cert, faults, mux, o.Log); err != nil {
		return nil, fmt.Errorf("start Web Push simulator: %w", err)
	}
	return s, nil
}

// Pool holds the certificate that a client must trust.
func (s *WebPushServer) Pool() *x509.CertPool { return s.cert.pool }

// CA is that certificate in PEM.
func (s *WebPushServer) CA() []byte { return s.cert.pem() }

// Subscribe is the subscription of the browser of that name, always the same one
// until the server closes.
func (s *WebPushServer) Subscribe(name string) Subscription {
	return s.browser(name).subscription(s.URL() + "/push/" + name)
}

// send takes one message.
func (s *WebPushServer) send(w http.ResponseWriter, r *http.Request) {
	var did []string
	to := s.URL() + r.URL.Path
	ev := Event{To: []string{to}}
	failed := func(step Step) bool {
		ev.Step = step
		return s.fault(w, r, ev, &did, func(x *Fault) {
			status := x.Code
			if status == 0 {
				status = webPushErrors[x.Error]
			}
			http.Error(w, x.Error, status)
		})
	}
	if failed(StepHeaders) {
		return
	}
	sender, err := s.authorize(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	if err := checkWebPush(r); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	body, err := readBody(w, r, webPushMaxBody)
	if err != nil {
		http.Error(w, "the body has more than 4096 bytes", http.StatusRequestEntityTooLarge)
		return
	}
	s.number.Add(1)
	location := fmt.Sprintf("%s/message/%d", s.URL(), s.number.Load())
	t := Taken{
		Channel: "push", Provider: "webpush", From: sender, To: to, MessageID: location,
		ReceivedAt: s.o.Clock(), Via: r.Proto, Conn: connOf(r).number,
	}
	s.show(&t, r.PathValue("name"), body)
	ev.From, ev.Subject, ev.MessageID = sender, t.Subject, t.MessageID
	if failed(StepBody) {
		return
	}
	t.Faults = did
	if err := s.o.Store.Append(t); err != nil {
		s.o.Log.Error("message not stored", "error", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	if failed(StepReply) {
		return
	}
	w.Header().Set("Location", location)
	w.WriteHeader(http.StatusCreated)
}
