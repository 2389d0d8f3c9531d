package incident

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/overhttp"
)

const secret = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=" // 0123456789abcdef twice

// request is what a receiver got.
type request struct {
	header http.Header
	path   string
	body   []byte
}

// receiver answers with what answer says, and keeps the requests.
func receiver(t *testing.T, answer func(n int, w http.ResponseWriter, r *http.Request)) (string, <-chan request) {
	t.Helper()
	got := make(chan request, 1000)
	n := 0
	var mu sync.Mutex
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		n++
		mine := n
		mu.Unlock()
		got <- request{r.Header, r.URL.Path, b}
		if answer != nil {
			answer(mine, w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL, got
}

func next(t *testing.T, what string, got <-chan request) request {
	t.Helper()
	select {
	case r := <-got:
		return r
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: nothing came", what)
	}
	return request{}
}

// dispatch runs a dispatcher for the test.
func dispatch(t *testing.T, cfg DispatchConfig) {
	t.Helper()
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	d, err := NewDispatcher(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); d.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

func mustWebhook(t *testing.T, url string) *Webhook {
	t.Helper()
	w, err := NewWebhook(url, secret)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// TestWebhookIsSigned computes the signature anew, as a receiver would.
func TestWebhookIsSigned(t *testing.T) {
	url, got := receiver(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n == 1 {
			w.WriteHeader(http.StatusBadGateway) // it comes again, with the same id
		}
	})
	b := newBench("")
	dispatch(t, DispatchConfig{Engine: b.Engine, Sinks: []Sink{mustWebhook(t, url+"/hook")}})
	b.pass(4*time.Second, stall)
	first, again := next(t, "opened", got), next(t, "again", got)
	b.pass(20 * time.Second)
	resolved := next(t, "resolved", got)
	for n, r := range []request{first, again, resolved} {
		id, at := r.header.Get("webhook-id"), r.header.Get("webhook-timestamp")
		mac := hmac.New(sha256.New, []byte("0123456789abcdef0123456789abcdef"))
		mac.Write(bytes.Join([][]byte{[]byte(id), []byte(at), r.body}, []byte(".")))
		if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); r.header.Get("webhook-signature") != want {
			t.Errorf("request %d: signature %s, want %s", n, r.header.Get("webhook-signature"), want)
		}
		if sec, err := strconv.ParseInt(at, 10, 64); err != nil || time.Since(time.Unix(sec, 0)).Abs() > time.Minute {
			t.Errorf("request %d: timestamp %s", n, at)
		}
		if r.path != "/hook" || r.header.Get("Content-Type") != "application/json" || id == "" || strings.Contains(id, ".") {
			t.Errorf("request %d: %s %v", n, r.path, r.header)
		}
	}
	if first.header.Get("webhook-id") != again.header.Get("webhook-id") || first.header.Get("webhook-id") == resolved.header.Get("webhook-id") {
		t.Error("the id is not that of the event")
	}
	var body struct {
		Type string
		Data Incident
	}
	if err := json.Unmarshal(resolved.body, &body); err != nil || body.Type != "incident.resolved" || body.Data.Cause != "stall/transactional.email" || body.Data.ResolvedAt == nil {
		t.Errorf("%s, %v", resolved.body, err)
	}
}

// TestNoSinkWaitsForAnother: a webhook that hangs for ever, and one that fails
// for ever, don't delay Alertmanager.
func TestNoSinkWaitsForAnother(t *testing.T) {
	release := make(chan struct{})
	hung, hungGot := receiver(t, func(_ int, _ http.ResponseWriter, r *http.Request) { <-release })
	t.Cleanup(func() { close(release) })
	failing, _ := receiver(t, func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
	am, amGot := receiver(t, nil)
	sink, err := NewAlertmanager(am + "/")
	if err != nil {
		t.Fatal(err)
	}
	b := newBench("")
	dispatch(t, DispatchConfig{Engine: b.Engine, Sinks: []Sink{mustWebhook(t, hung), mustWebhook(t, failing), sink}})
	began := time.Now()
	b.pass(4*time.Second, stall)
	next(t, "the hung webhook's", hungGot)
	opened := next(t, "Alertmanager's", amGot)
	b.pass(20 * time.Second)
	resolved := next(t, "Alertmanager's end", amGot)
	for !bytes.Contains(resolved.body, []byte(`"endsAt":"2026-03-01T`)) { // before it the first repeat may have come
		resolved = next(t, "Alertmanager's end", amGot)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("Alertmanager was told after %s", took)
	}
	for n, r := range []request{opened, resolved} {
		var alerts []alert
		if err := json.Unmarshal(r.body, &alerts); err != nil || len(alerts) != 1 || r.path != "/api/v2/alerts" {
			t.Fatalf("%s %s: %v", r.path, r.body, err)
		}
		a := alerts[0]
		if a.Labels["cause"] != "stall/transactional.email" || a.Labels["alertname"] == "" || a.Labels["lane"] != "transactional.email" ||
			a.Annotations["runbook_url"] == "" || a.Annotations["command"] == "" || a.Annotations["count"] != "7" {
			t.Errorf("%+v", a)
		}
		if over := a.EndsAt.Before(time.Now()); over != (n == 1) {
			t.Errorf("request %d: endsAt %s", n, a.EndsAt)
		}
	}
}

// TestHungTryTimesOut: a try that hangs ends, and the event comes again.
func TestHungTryTimesOut(t *testing.T) {
	url, got := receiver(t, func(n int, _ http.ResponseWriter, r *http.Request) {
		if n == 1 {
			<-r.Context().Done() // until the client gives up
		}
	})
	b := newBench("")
	dispatch(t, DispatchConfig{Engine: b.Engine, Sinks: []Sink{mustWebhook(t, url)}, Timeout: 50 * time.Millisecond})
	b.pass(4*time.Second, stall)
	first, again := next(t, "opened", got), next(t, "again", got)
	if first.header.Get("webhook-id") != again.header.Get("webhook-id") {
		t.Error("it is another event")
	}
}

// TestEventIsGivenUp: one that a sink never takes doesn't keep the next from it.
func TestEventIsGivenUp(t *testing.T) {
	url, got := receiver(t, func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	b := newBench("")
	dispatch(t, DispatchConfig{Engine: b.Engine, Sinks: []Sink{mustWebhook(t, url)}, GiveUp: 50 * time.Millisecond})
	b.pass(4*time.Second, stall)
	first := next(t, "opened", got)
	b.pass(20 * time.Second)
	for {
		if r := next(t, "resolved", got); r.header.Get("webhook-id") != first.header.Get("webhook-id") {
			return
		}
	}
}

// TestAlertmanagerIsRepeated: what is open is told again and again, also what
// was open before a restart.
func TestAlertmanagerIsRepeated(t *testing.T) {
	url, got := receiver(t, nil)
	b := newBench("")
	b.pass(4*time.Second, stall)
	sink, err := NewAlertmanager(url)
	if err != nil {
		t.Fatal(err)
	}
	sink.every = 20 * time.Millisecond
	dispatch(t, DispatchConfig{Engine: b.Engine, Sinks: []Sink{sink}})
	for range 3 {
		if r := next(t, "repeat", got); !bytes.Contains(r.body, []byte(`"stall/transactional.email"`)) {
			t.Errorf("%s", r.body)
		}
	}
}

// TestAlertmanagerHearsWorse: by its labels, the critical one is another alert, and
// the warning ends.
func TestAlertmanagerHearsWorse(t *testing.T) {
	url, got := receiver(t, nil)
	sink, err := NewAlertmanager(url)
	if err != nil {
		t.Fatal(err)
	}
	b := newBench("")
	dispatch(t, DispatchConfig{Engine: b.Engine, Sinks: []Sink{sink}})
	hear := func(what string, n int, severity string) (alerts []alert) {
		t.Helper()
		for len(alerts) != n || alerts[0].Labels["severity"] != severity { // what is open may be told twice
			if err := json.Unmarshal(next(t, what, got).body, &alerts); err != nil {
				t.Fatal(err)
			}
		}
		return alerts
	}
	c := Condition{Kind: Credential, Subject: "relay", Summary: "it ends soon"}
	b.pass(5*time.Second, c)
	hear("opened", 1, "warning")
	c.Severity = Critical
	b.pass(time.Second, c)
	alerts := hear("worse", 2, "critical")
	if a := alerts[0]; a.Labels["severity"] != "critical" || !a.EndsAt.After(time.Now()) {
		t.Errorf("%+v", a)
	}
	if a := alerts[1]; a.Labels["severity"] != "warning" || a.Labels["cause"] != "credential/relay" || !a.EndsAt.Equal(b.now) {
		t.Errorf("%+v", a)
	}
	b.pass(20 * time.Second)
	if a := hear("over", 1, "critical")[0]; a.EndsAt.After(b.now) {
		t.Errorf("%+v", a)
	}
}

func TestQueueIsBounded(t *testing.T) {
	q := &queue{wake: make(chan struct{}, 1)}
	worse := event(Updated, Incident{ID: "inc_same"})
	worse.Was = Warning
	q.push(worse)
	for n := range 10 * mostQueued {
		whole := q.push(event(Updated, Incident{ID: "inc_same"}))
		if !whole || len(q.list) != 1 {
			t.Fatalf("update %d did not take the place of the last one", n)
		}
	}
	if q.list[0].Was != Warning {
		t.Errorf("that it became worse is lost: %+v", q.list[0])
	}
	dropped := 0
	for range 2 * mostQueued {
		if !q.push(event(Opened, Incident{ID: "inc_x"})) {
			dropped++
		}
	}
	if len(q.list) != mostQueued || dropped != mostQueued+1 {
		t.Errorf("%d queued, %d dropped", len(q.list), dropped)
	}
}

func TestLogSink(t *testing.T) {
	var out bytes.Buffer
	b := newBench("")
	b.pass(4*time.Second, stall)
	l := Log{slog.New(slog.NewTextHandler(&out, nil))}
	if err := l.Send(t.Context(), b.events[0]); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"incident opened", "cause=stall/transactional.email", "count=7", "runbook=https", "command="} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("no %q in %s", part, &out)
		}
	}
}

func TestCheckURL(t *testing.T) {
	for text, want := range map[string][2]bool{ // for a webhook, for Alertmanager
		"https://pager.example/hook?x=1": {true, false},
		"https://pager.example:8443":     {true, true},
		"http://127.0.0.1:1/x":           {true, true},
		"http://[::1]:1/x":               {true, true},
		"http://localhost/x":             {true, true},
		"http://am.internal:9093":        {false, true},
		"http://127.0.0.1.evil.example":  {false, true},
		"https://u:p@pager.example":      {false, false},
		"ftp://pager.example":            {false, false},
		"pager.example":                  {false, false},
		"":                               {false, false},
	} {
		if got := [2]bool{CheckURL(text, false) == nil, CheckURL(text, true) == nil}; got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
	for _, bad := range []string{"", "whsec_", "whsec_c2hvcnQ=", secret[6:], "whsec_!" + secret[7:]} {
		if _, err := overhttp.ParseSecret(bad); err == nil || bad != "" && bad != "whsec_" && strings.Contains(err.Error(), strings.TrimPrefix(bad, "whsec_")) {
			t.Errorf("secret %q: %v", bad, err)
		}
	}
}

// TestRedirectIsNotFollowed: a signed body goes nowhere else.
func TestRedirectIsNotFollowed(t *testing.T) {
	other, got := receiver(t, nil)
	url, _ := receiver(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other, http.StatusTemporaryRedirect)
	})
	b := newBench("")
	b.pass(4*time.Second, stall)
	if err := mustWebhook(t, url).Send(t.Context(), b.events[0]); err == nil || len(got) > 0 {
		t.Errorf("%v, %d requests", err, len(got))
	}
}
