package sim

import (
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/credential"
)

func startAPNS(t testing.TB, o APNSOptions) *APNSServer {
	t.Helper()
	if o.Store == nil {
		o.Store = openStore(t, t.TempDir())
	}
	s, err := StartAPNS(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// providerToken is one by the key of s, made at a time.
func providerToken(t testing.TB, s *APNSServer, kid, team string, at time.Time) string {
	t.Helper()
	token, err := credential.SignES256(s.key, map[string]string{"kid": kid}, map[string]any{"iss": team, "iat": at.Unix()})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// fetchAnswer makes a request, and answers with the status and the reason.
func fetchAnswer(t testing.TB, tr *http.Transport, method, url string, header map[string]string, body string) (status int, reason string, h http.Header) {
	t.Helper()
	r, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		if v == "" {
			continue
		}
		for _, one := range strings.Split(v, "|") {
			r.Header.Add(k, one)
		}
	}
	resp, err := (&http.Client{Transport: tr}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var a struct{ Reason string }
	if json.Unmarshal(b, &a) != nil {
		a.Reason = strings.TrimSpace(string(b))
	}
	return resp.StatusCode, a.Reason, resp.Header
}

func http2To(t testing.TB, conf *tls.Config) *http.Transport {
	tr := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

const device = "00fc13adff785122b4ad28809a3420982341241421348097878e577c991de8f0"

// It takes what Apple documents, and refuses the rest with Apple's reasons.
// Each connection is for the key that it began with, as long as that is valid.
func TestAPNSKeys(t *testing.T) {
	s := startAPNS(t, APNSOptions{})
	file, err := s.AddKey("SIMKEY0002")
	if err != nil {
		t.Fatal(err)
	}
	other, err := credential.ParseES256Key(file)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	old := providerToken(t, s, APNSKeyID, APNSTeamID, now)
	another, err := credential.SignES256(other, map[string]string{"kid": "SIMKEY0002"}, map[string]any{"iss": APNSTeamID, "iat": now.Unix()})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(tr *http.Transport, token string) string {
		t.Helper()
		status, reason, _ := fetchAnswer(t, tr, "POST", s.URL()+"/3/device/"+device, map[string]string{
			"Authorization": "bearer " + token, "apns-topic": s.Topic(), "apns-push-type": "alert",
		}, `{"aps":{"alert":"x"}}`)
		return strings.TrimSpace(http.StatusText(status) + " " + reason)
	}
	one, two := http2To(t, &tls.Config{RootCAs: s.Pool()}), http2To(t, &tls.Config{RootCAs: s.Pool()})
	for i, c := range []struct {
		tr    *http.Transport
		token string
		want  string
	}{
		{one, old, "OK"}, {one, another, "Forbidden UnrelatedKeyIdInToken"}, {two, another, "OK"}, {two, old, "Forbidden UnrelatedKeyIdInToken"}, {one, old, "OK"},
	} {
		if got := ask(c.tr, c.token); got != c.want {
			t.Errorf("%d: %s, want %s", i, got, c.want)
		}
	}
	s.RevokeKey(APNSKeyID)
	if got := ask(one, old); got != "Forbidden InvalidProviderToken" {
		t.Errorf("a key that was taken back: %s", got)
	}
	if got := ask(two, another); got != "OK" {
		t.Errorf("the other: %s", got)
	}
}

func TestAPNS(t *testing.T) {
	at := time.Now()
	s := startAPNS(t, APNSOptions{Clock: func() time.Time { return at }})
	tr := http2To(t, &tls.Config{RootCAs: s.Pool()})
	good := providerToken(t, s, APNSKeyID, APNSTeamID, at)
	payload := `{"aps":{"alert":{"title":"Hi","body":"x"}},"stormpost_id":"msg_1"}`
	headers := func(change map[string]string) map[string]string {
		h := map[string]string{
			"Authorization": "bearer " + good, "apns-topic": s.Topic(), "apns-push-type": "alert", "apns-priority": "10",
			"apns-expiration": "1800000000", "apns-id": "eabeae54-14a8-11e5-b60b-1697f925ec7b", "apns-collapse-id": "msg_1",
		}
		for k, v := range change {
			h[k] = v
		}
		return h
	}
	status, reason, h := fetchAnswer(t, tr, "POST", s.URL()+"/3/device/"+device, headers(nil), payload)
	if status != 200 || reason != "" || h.Get("apns-id") != "eabeae54-14a8-11e5-b60b-1697f925ec7b" {
		t.Fatalf("%d %s %v", status, reason, h)
	}
	x, _, err := s.o.Store.Get(1)
	if err != nil || x.Channel != "push" || x.Provider != "apns" || x.From != s.Topic() || x.To != device || x.Subject != "Hi" || x.MessageID != "msg_1" || string(x.Raw) != payload || x.Via != "HTTP/2.0" {
		t.Fatalf("stored %+v, %v", x, err)
	}
	for name, c := range map[string]struct {
		method, path string
		change       map[string]string
		body, reason string
	}{
		"GET":               {"GET", "/3/device/" + device, nil, payload, "MethodNotAllowed"},
		"path":              {"POST", "/v1/x", nil, payload, "BadPath"},
		"no device":         {"POST", "/3/device/", nil, payload, "MissingDeviceToken"},
		"odd device":        {"POST", "/3/device/" + device[1:], nil, payload, "BadDeviceToken"},
		"no topic":          {"", "", map[string]string{"apns-topic": ""}, payload, "MissingTopic"},
		"another topic":     {"", "", map[string]string{"apns-topic": "com.example.other"}, payload, "TopicDisallowed"},
		"type":              {"", "", map[string]string{"apns-push-type": "loud"}, payload, "InvalidPushType"},
		"priority":          {"", "", map[string]string{"apns-priority": "7"}, payload, "BadPriority"},
		"loud background":   {"", "", map[string]string{"apns-push-type": "background"}, payload, "BadPriority"},
		"expiration":        {"", "", map[string]string{"apns-expiration": "soon"}, payload, "BadExpirationDate"},
		"id":                {"", "", map[string]string{"apns-id": "1"}, payload, "BadMessageId"},
		"collapse id":       {"", "", map[string]string{"apns-collapse-id": strings.Repeat("x", 65)}, payload, "BadCollapseId"},
		"twice":             {"", "", map[string]string{"apns-priority": "5|10"}, payload, "DuplicateHeaders"},
		"no token":          {"", "", map[string]string{"Authorization": ""}, payload, "MissingProviderToken"},
		"no JWT":            {"", "", map[string]string{"Authorization": "bearer x"}, payload, "InvalidProviderToken"},
		"another team":      {"", "", map[string]string{"Authorization": "bearer " + providerToken(t, s, APNSKeyID, "OTHERTEAM1", at)}, payload, "InvalidProviderToken"},
		"another key":       {"", "", map[string]string{"Authorization": "bearer " + providerToken(t, s, "OTHERKEY01", APNSTeamID, at)}, payload, "InvalidProviderToken"},
		"old token":         {"", "", map[string]string{"Authorization": "bearer " + providerToken(t, s, APNSKeyID, APNSTeamID, at.Add(-61*time.Minute))}, payload, "ExpiredProviderToken"},
		"a second at once":  {"", "", map[string]string{"Authorization": "bearer " + providerToken(t, s, APNSKeyID, APNSTeamID, at.Add(-time.Minute))}, payload, "TooManyProviderTokenUpdates"},
		"empty":             {"", "", nil, "", "PayloadEmpty"},
		"no aps":            {"", "", nil, `{"x":1}`, "PayloadEmpty"},
		"a byte over":       {"", "", nil, `{"aps":{},"x":"` + strings.Repeat("x", 4096-16) + `"}`, "PayloadTooLarge"},
		"the largest there": {"", "", nil, `{"aps":{},"x":"` + strings.Repeat("x", 4096-17) + `"}`, ""},
	} {
		method, path := c.method, c.path
		if method == "" {
			method, path = "POST", "/3/device/"+device
		}
		status, reason, _ := fetchAnswer(t, tr, method, s.URL()+path, headers(c.change), c.body)
		if reason != c.reason || c.reason != "" && status != apnsErrors[c.reason] {
			t.Errorf("%s: %d %s, want %s", name, status, reason, c.reason)
		}
	}
	at = at.Add(21 * time.Minute)
	good = providerToken(t, s, APNSKeyID, APNSTeamID, at)
	if status, reason, _ := fetchAnswer(t, tr, "POST", s.URL()+"/3/device/"+device, headers(nil), payload); status != 200 {
		t.Errorf("a new token after 21 minutes: %d %s", status, reason)
	}
	h1 := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.Pool(), NextProtos: []string{"http/1.1"}}}
	defer h1.CloseIdleConnections()
	if status, _, _ := fetchAnswer(t, h1, "POST", s.URL()+"/3/device/"+device, headers(nil), payload); status != 505 {
		t.Errorf("by HTTP/1.1: %d", status)
	}
	n := s.o.Store.Count()
	setFaults(t, s, Fault{Step: StepBody, Do: Answer, Error: "Unregistered", Times: 1})
	if status, reason, _ := fetchAnswer(t, tr, "POST", s.URL()+"/3/device/"+device, headers(nil), payload); status != 410 || reason != "Unregistered" || s.o.Store.Count() != n {
		t.Errorf("fault: %d %s", status, reason)
	}
}
