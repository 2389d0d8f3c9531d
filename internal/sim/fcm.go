package sim

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// FCMOptions configure an FCMServer. Store is required.
type FCMOptions struct {
	Addr  string // where to listen; default a free port of 127.0.0.1
	Store *Store
	// Tokens says which bearer tokens, and which project, are good. Without it
	// any are.
	Tokens *TokenServer
	TLS    bool // HTTPS with a certificate that Pool trusts; else clear text
	Clock  func() time.Time
	Log    *slog.Logger
}

// FCMServer is Firebase Cloud Messaging's HTTP v1 API: POST
// /v1/projects/{project}/messages:send, by HTTP/1.1 and HTTP/2
// (https://firebase.google.com/docs/reference/fcm/rest/v1/projects.messages/send).
// It refuses what the documentation says is refused; whether a registration
// token exists is up to the faults.
type FCMServer struct {
	*httpServer
	o      FCMOptions
	cert   *certificate
	number atomic.Uint64
}

// StartFCM listens and serves until Close. ctx is for starting only.
func StartFCM(ctx context.Context, o FCMOptions) (*FCMServer, error) {
	if o.Store == nil {
		return nil, errors.New("start FCM simulator: no store")
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &FCMServer{o: o}
	var err error
	if o.TLS {
		if s.cert, err = newCertificate("localhost", o.Clock()); err != nil {
			return nil, fmt.Errorf("start FCM simulator: %w", err)
		}
	}
	documented := func(code string) bool { _, ok := fcmErrors[code]; return ok }
	faults := newFaults(o.Clock, checkHTTPFault(documented), StepConnect, StepHeaders, StepBody, StepReply)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/projects/{project}/{call}", s.send)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		answerFCM(w, fcmError{status: http.StatusNotFound, name: "NOT_FOUND", message: "No such method."})
	})
	if s.httpServer, err = serveHTTP(ctx, o.Addr, s.cert, faults, mux, o.Log); err != nil {
		return nil, fmt.Errorf("start FCM simulator: %w", err)
	}
	return s, nil
}

// Pool holds the certificate that a client must trust, with TLS.
func (s *FCMServer) Pool() *x509.CertPool {
	if s.cert == nil {
		return nil
	}
	return s.cert.pool
}

// send takes one message.
func (s *FCMServer) send(w http.ResponseWriter, r *http.Request) {
	var did []string
	var ev Event
	failed := func(step Step) bool {
		ev.Step = step
		return s.fault(w, r, ev, &did, func(x *Fault) { answerFCM(w, faultError(x)) })
	}
	project := r.PathValue("project")
	ev.From = project
	if failed(StepHeaders) {
		return
	}
	if r.PathValue("call") != "messages:send" {
		answerFCM(w, fcmError{status: http.StatusNotFound, name: "NOT_FOUND", message: "No such method."})
		return
	}
	if e := s.authorize(r, project); e.status != 0 {
		w.Header().Set("WWW-Authenticate", `Bearer realm="https://accounts.google.com/"`)
		answerFCM(w, e)
		return
	}
	body, err := readBody(w, r, RawLimit)
	if err != nil {
		answerFCM(w, badField("", "the request can't be read"))
		return
	}
	m, validateOnly, bad := parseFCM(body)
	if bad != nil {
		answerFCM(w, *bad)
		return
	}
	if validateOnly {
		writeJSON(w, http.StatusOK, map[string]string{"name": "projects/" + project + "/messages/fake_message_id"})
		return
	}
	name := s.nextName(project)
	t := m.taken(project, name)
	t.ReceivedAt, t.Raw, t.Size = s.o.Clock(), body, len(body)
	t.Via, t.Conn = r.Proto, connOf(r).number
	ev.To, ev.Subject, ev.MessageID = []string{t.To}, t.Subject, t.MessageID
	if failed(StepBody) {
		return
	}
	t.Faults = did
	if err := s.o.Store.Append(t); err != nil {
		s.o.Log.Error("message not stored", "error", err)
		answerFCM(w, fcmErrors["INTERNAL"])
		return
	}
	if failed(StepReply) {
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"name": name})
}

// authorize answers with an error, or with none.
func (s *FCMServer) authorize(r *http.Request, project string) fcmError {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" || s.o.Tokens != nil && !s.o.Tokens.Valid(token) {
		return unauthenticated
	}
	if s.o.Tokens != nil && s.o.Tokens.Project() != project {
		return fcmError{
			status:  http.StatusForbidden,
			name:    "PERMISSION_DENIED",
			message: "Permission 'cloudmessaging.messages.create' denied on this project (or it may not exist).",
		}
	}
	return fcmError{}
}

func (s *FCMServer) nextName(project string) string {
	return fmt.Sprintf("projects/%s/messages/0:%d%%%08x", project, s.o.Clock().UnixMicro(), s.number.Add(1))
}

// taken is what the store keeps of m, as far as m knows it.
func (m *fcmMessage) taken(project, name string) Taken {
	t := Taken{Channel: "push", Provider: "fcm", From: project, To: m.target(), MessageID: m.Data["stormpost_id"]}
	if t.MessageID == "" {
		t.MessageID = name
	}
	if m.Notification != nil {
		t.Subject = m.Notification.Title
	}
	return t
}

func (m *fcmMessage) target() string {
	switch {
	case m.Topic != "":
		return "/topics/" + m.Topic
	case m.Condition != "":
		return m.Condition
	}
	return m.Token
}

// fcmMessage is the Message of the API, with the parts that are for one
// platform each checked for shape alone
// (https://firebase.google.com/docs/reference/fcm/rest/v1/projects.messages).
type fcmMessage struct {
	Name         string            `json:"name"`
	Data         map[string]string `json:"data"`
	Notification *struct {
		Title string `json:"title"`
		Body  string `json:"body"`
		Image string `json:"image"`
	} `json:"notification"`
	Android *struct {
		CollapseKey           string            `json:"collapse_key"`
		Priority              string            `json:"priority"`
		TTL                   string            `json:"ttl"`
		RestrictedPackageName string            `json:"restricted_package_name"`
		Data                  map[string]string `json:"data"`
		Notification          map[string]any    `json:"notification"`
		FCMOptions            fcmOptions        `json:"fcm_options"`
		DirectBootOK          bool              `json:"direct_boot_ok"`
		BandwidthOK           bool              `json:"bandwidth_constrained_ok"`
		SatelliteOK           bool              `json:"restricted_satellite_ok"`
	} `json:"android"`
	Webpush *struct {
		Headers      map[string]string `json:"headers"`
		Data         map[string]string `json:"data"`
		Notification map[string]any    `json:"notification"`
		FCMOptions   fcmOptions        `json:"fcm_options"`
	} `json:"webpush"`
	APNs *struct {
		Headers           map[string]string          `json:"headers"`
		Payload           map[string]json.RawMessage `json:"payload"`
		FCMOptions        fcmOptions                 `json:"fcm_options"`
		LiveActivityToken string                     `json:"live_activity_token"`
	} `json:"apns"`
	FCMOptions fcmOptions `json:"fcm_options"`
	Token      string     `json:"token"`
	Topic      string     `json:"topic"`
	Condition  string     `json:"condition"`
}

type fcmOptions struct {
	AnalyticsLabel string `json:"analytics_label"`
	Link           string `json:"link"`
	Image          string `json:"image"`
}
