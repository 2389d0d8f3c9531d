package webpush

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/delivery/providertest"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

// testKey is a VAPID key as Web Push tools print it.
var testKey = sync.OnceValue(func() string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	raw, err := key.Bytes()
	if err != nil {
		panic(err)
	}
	return base64.RawURLEncoding.EncodeToString(raw)
})

func config(o providertest.HTTPService) Config {
	return Config{
		Name: "webpush", VAPIDKey: testKey(), Subject: "mailto:ops@sender.example", AllowPrivate: true,
		Concurrency: o.Concurrency, ReplyLimit: o.ReplyLimit, RootCAs: o.Roots,
	}
}

func newProvider(t *testing.T, cfg Config) *Provider {
	t.Helper()
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// envelope is the nth message, to b at a push service; n stands in its data.
func envelope(n int, endpoint string, b *browser) *message.Envelope {
	push := &message.Push{
		Platform: "webpush", To: message.Target{Endpoint: endpoint, Keys: b.keys()},
		Notification: &message.Notification{Title: "Your code", Body: "123456"}, Data: map[string]string{"n": strconv.Itoa(n)},
	}
	return &message.Envelope{
		Position: message.PositionOf(message.Lane{Class: message.Transactional, Channel: message.ChannelPush}, int64(n)+1, 0),
		ID:       message.SubmissionID(message.HashKey(1, strconv.Itoa(n)), message.FingerprintOf(nil)).Message(0),
		Attempt:  1, Tenant: 1, Recipient: endpoint, Content: &message.Content{Push: push}, ExpiresAt: time.Now().Add(time.Hour),
	}
}

const path = "/wpush/v2/CANARY"

func send(t *testing.T, p *Provider, env *message.Envelope) (res message.Result, lasts int) {
	t.Helper()
	slot, err := p.Reserve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer slot.Release()
	res = slot.Send(t.Context(), env, func() error { lasts++; return nil })
	if strings.Contains(fmt.Sprintf("%+v", res), "CANARY") {
		t.Errorf("the result shows the endpoint: %+v", res)
	}
	return res, lasts
}

// TestProvider runs the suite for providers over HTTP: the contract, every
// documented status, and a cut at every step.
func TestProvider(t *testing.T) {
	b := newBrowser()
	var base string
	number := func(r *http.Request, body []byte) (int, error) {
		ttl, err := strconv.Atoi(r.Header.Get("TTL"))
		if r.Method != http.MethodPost || r.URL.Path != path || err != nil || ttl < 3500 || ttl > 3600 ||
			r.Header.Get("Urgency") != "high" || r.Header.Get("Content-Encoding") != "aes128gcm" || r.Header.Get("Topic") != "" ||
			!strings.HasPrefix(r.Header.Get("Authorization"), "vapid t=ey") || !strings.Contains(r.Header.Get("Authorization"), ", k=") {
			return 0, fmt.Errorf("%s %s %v", r.Method, r.URL.Path, r.Header)
		}
		plain, err := b.open(body)
		if err != nil {
			return 0, err
		}
		var got payload
		if err := json.Unmarshal(plain, &got); err != nil {
			return 0, err
		}
		n, err := strconv.Atoi(got.Data["n"])
		if err != nil || got.Notification.Body != "123456" || got.Data[idKey] != envelope(n, "", b).ID.String() {
			return 0, fmt.Errorf("payload %s", plain)
		}
		return n, nil
	}
	answers := []providertest.HTTPCase{
		providertest.Answered(201, "", message.Sent, "201"),
		providertest.Answered(202, "", message.Sent, "202"),
		providertest.Answered(200, "", message.Unknown, "200"),
		providertest.Answered(204, "", message.Unknown, "204"),
		providertest.Answered(400, "bad $SECRET", message.Rejected, "400"),
		providertest.Answered(400, `{"reason":"BadWebPushTopic"}`, message.Rejected, "400"),
		providertest.Answered(400, `{"code":400,"errno":110,"error":"Bad Request"}`, message.Rejected, "400"),
		providertest.Answered(400, "<HTML>\n<HEAD>\n<TITLE>UnauthorizedRegistration</TITLE>", message.Deferred, "400"),
		providertest.Answered(400, `{"reason":"VapidPkHashMismatch"}`, message.Deferred, "400"),
		providertest.Answered(400, `{"reason":"BadVapidPublicKey"}`, message.Deferred, "400"),
		providertest.Answered(400, `{"reason":"BadJwtToken"}`, message.Deferred, "400"),
		providertest.Answered(400, `{"reason":"BadAuthorizationHeader"}`, message.Deferred, "400"),
		providertest.Answered(400, `{"reason":"IdleTimeout"}`, message.Deferred, "400"),
		providertest.Answered(400, strings.Repeat("x", 64<<10+1), message.Deferred, "400"),
		providertest.Answered(401, "", message.Deferred, "401"),
		providertest.Answered(403, "BadJwtToken", message.Deferred, "403"),
		providertest.Answered(404, "", message.Rejected, message.RecipientGone),
		providertest.Answered(410, `{"errno":106}`, message.Rejected, message.RecipientGone),
		providertest.Answered(405, "", message.Unknown, "405"),
		providertest.Answered(408, "", message.Unknown, "408"),
		providertest.Answered(413, "", message.Rejected, "413"),
		{HTTPAnswer: providertest.HTTPAnswer{Status: 429}, Outcome: message.Deferred, Code: "429", RetryAfter: time.Minute},
		{HTTPAnswer: providertest.HTTPAnswer{Status: 429, Header: http.Header{"Retry-After": {"17"}}}, Outcome: message.Deferred, RetryAfter: 17 * time.Second},
		providertest.Answered(500, "", message.Unknown, "500"),
		providertest.Answered(502, "", message.Unknown, "502"),
		providertest.Answered(503, "", message.Unknown, "503"),
		providertest.Answered(504, "", message.Unknown, "504"),
	}
	for _, status := range []int{301, 302, 307, 308} {
		a := providertest.HTTPAnswer{Status: status, Header: http.Header{"Location": {"https://127.0.0.1:1/elsewhere"}}}
		answers = append(answers, providertest.HTTPCase{HTTPAnswer: a, Outcome: message.Deferred})
	}
	providertest.RunHTTP(t, providertest.HTTP{
		New: func(t *testing.T, o providertest.HTTPService) delivery.Provider {
			base = o.Base
			c := config(o)
			c.Concurrency *= 2 // of which one push service gets three quarters: hold it to what the suite counts
			return limited{newProvider(t, c), make(chan struct{}, o.Concurrency)}
		},
		Envelope: func(n int) *message.Envelope { return envelope(n, base+path, b) },
		Number:   number,
		Taken:    providertest.HTTPAnswer{Status: 201, Header: http.Header{"Location": {"https://push.example.net/m/1"}}},
		Defer:    providertest.HTTPAnswer{Status: 429}, Reject: providertest.HTTPAnswer{Status: 410},
		Answers: answers, HTTP2: true, Secret: path,
		Lacks: []providertest.Fault{providertest.Down}, // which service it is, only Send knows
	})
}

// limited has as many slots for all push services as the provider has for one.
type limited struct {
	*Provider
	slots chan struct{}
}

func (l limited) Reserve(ctx context.Context) (delivery.Slot, error) {
	select {
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s, err := l.Provider.Reserve(ctx)
	if err != nil {
		<-l.slots
		return nil, err
	}
	return limitedSlot{s, l.slots}, nil
}

type limitedSlot struct {
	delivery.Slot
	slots chan struct{}
}

func (s limitedSlot) Release() { s.Slot.Release(); <-s.slots }

// A token that is refused is used on for its hour: another says nothing else.
func TestRefusedToken(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	s := providertest.ServeHTTP2(t, func(w http.ResponseWriter, r *http.Request, _ []byte) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.Header.Get("Authorization"))
		w.WriteHeader([]int{403, 401, 201, 201}[len(seen)-1])
	})
	now := time.Now()
	cfg := config(s)
	cfg.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	p := newProvider(t, cfg)
	defer p.Close()
	for n := range 4 {
		if n == 3 {
			mu.Lock()
			now = now.Add(tokenUse)
			mu.Unlock()
		}
		send(t, p, envelope(n, s.Base+path, newBrowser()))
	}
	if len(seen) != 4 || seen[1] != seen[0] || seen[2] != seen[0] || seen[3] == seen[0] {
		t.Errorf("tokens %q", seen)
	}
}

// A push service that can't be reached has not been handed anything, and last is
// not asked.
func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	p := newProvider(t, config(providertest.HTTPService{}))
	defer p.Close()
	res, lasts := send(t, p, envelope(1, "https://"+addr+path, newBrowser()))
	if res.Outcome != message.Deferred || lasts != 0 {
		t.Errorf("result %+v, last called %d times", res, lasts)
	}
}

// No endpoint leads into a private network: neither by its own address, nor by
// what its name resolves to, nor by a redirect; unless that is allowed.
func TestPrivateEndpoints(t *testing.T) {
	var hits atomic.Int32
	s := providertest.ServeHTTP2(t, func(w http.ResponseWriter, r *http.Request, _ []byte) {
		hits.Add(1)
		w.Header().Set("Location", "https://"+r.Host+"/inside")
		w.WriteHeader(307)
	})
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(s.Base, "https://"))
	cfg := config(s)
	cfg.AllowPrivate = false
	p := newProvider(t, cfg)
	defer p.Close()
	for _, host := range []string{"127.0.0.1", "localhost", "localhost.", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"} {
		res, lasts := send(t, p, envelope(1, "https://"+host+":"+port+path, newBrowser()))
		if res.Outcome != message.Rejected || lasts != 0 {
			t.Errorf("%s: %+v, last called %d times", host, res, lasts)
		}
	}
	// A name that looks like any other, and resolves to this machine: now, or while
	// our resolver is in trouble, so that its message is tried again.
	service, err := p.services.get(&url.URL{Scheme: "https", Host: "localhost:" + port})
	if err != nil {
		t.Fatal(err)
	}
	if place, err := service.place(t.Context()); !errors.Is(err, overhttp.ErrNotPublic) {
		t.Errorf("a name of this machine: %v, %v", place, err)
	} else if res := unreachable(t.Context(), err, &url.URL{Path: path}); res.Outcome != message.Deferred || res.Fault {
		t.Errorf("a name of this machine: %+v", res)
	}
	p.services.put(service)
	if n := hits.Load(); n != 0 {
		t.Fatalf("%d requests arrived", n)
	}
	allowed := newProvider(t, config(s))
	defer allowed.Close()
	if res, _ := send(t, allowed, envelope(1, s.Base+path, newBrowser())); res.Outcome != message.Deferred || hits.Load() != 1 {
		t.Errorf("a redirect: %+v after %d requests", res, hits.Load())
	}
}

// One push service that hangs has three quarters of the slots at most.
func TestOneServiceHangs(t *testing.T) {
	arrived, release := make(chan struct{}, 8), make(chan struct{})
	slow := providertest.ServeHTTP2(t, func(w http.ResponseWriter, _ *http.Request, _ []byte) {
		arrived <- struct{}{}
		<-release
		w.WriteHeader(201)
	})
	good := providertest.ServeHTTP2(t, func(w http.ResponseWriter, _ *http.Request, _ []byte) { w.WriteHeader(201) })
	cfg := config(slow) // httptest's servers share one certificate
	cfg.Concurrency = 8
	p := newProvider(t, cfg)
	defer p.Close()
	var wg sync.WaitGroup
	for n := range 7 {
		wg.Go(func() {
			if res, _ := send(t, p, envelope(n, slow.Base+path, newBrowser())); res.Outcome != message.Sent {
				t.Errorf("slow: %+v", res)
			}
		})
	}
	for range 6 {
		<-arrived
	}
	for n := range 5 {
		if res, _ := send(t, p, envelope(n, good.Base+path, newBrowser())); res.Outcome != message.Sent {
			t.Errorf("another service: %+v", res)
		}
	}
	select {
	case <-arrived:
		t.Error("a seventh request of eight slots")
	case <-time.After(50 * time.Millisecond): // a chance to do wrong
	}
	close(release)
	wg.Wait()
}

// Services are let go when there are too many, and never while they are used.
func TestManyServices(t *testing.T) {
	now := time.Now()
	cfg, err := Config{Name: "w", VAPIDKey: testKey(), Subject: "mailto:a@b.example", Now: func() time.Time { return now }}.check()
	if err != nil {
		t.Fatal(err)
	}
	s := &services{cfg: cfg, open: make(map[string]*service)}
	defer s.close()
	get := func(n int) (*service, error) {
		u, err := endpoint(fmt.Sprintf("https://push%d.example/x", n), false)
		if err != nil {
			t.Fatal(err)
		}
		return s.get(u)
	}
	var first *service
	for n := range maxServices {
		v, err := get(n)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			first = v
			continue
		}
		s.put(v)
		now = now.Add(time.Millisecond)
	}
	v, err := get(maxServices)
	if err != nil || len(s.open) != maxServices {
		t.Fatalf("one more: %v, %d open", err, len(s.open))
	}
	s.put(v)
	if again, err := get(0); err != nil || again != first {
		t.Errorf("the one in use is another: %v", err)
	}
	now = now.Add(serviceIdle + time.Second)
	if _, err := get(maxServices + 1); err != nil || len(s.open) != 2 {
		t.Errorf("after a pause: %v, %d open", err, len(s.open))
	}
	for n := range maxServices - 2 {
		if _, err := get(1000 + n); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := get(1); !errors.Is(err, errManyServices) {
		t.Errorf("with all in use: %v", err)
	}
}

func TestHeader(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	make := func(replace bool) *Provider {
		c := config(providertest.HTTPService{})
		c.Now, c.ReplaceRepeats = func() time.Time { return now }, replace
		p := newProvider(t, c)
		t.Cleanup(func() { p.Close() })
		return p
	}
	p, replacing := make(false), make(true)
	for name, c := range map[string]struct {
		p      *Provider
		change func(*message.Envelope)
		want   map[string]string
	}{
		"rounded down": {p, func(e *message.Envelope) { e.ExpiresAt = now.Add(90*time.Second + 999*time.Millisecond) }, map[string]string{"Ttl": "90", "Topic": ""}},
		"past":         {p, func(e *message.Envelope) { e.ExpiresAt = now.Add(-time.Hour) }, map[string]string{"Ttl": "0"}},
		"no expiry":    {p, func(e *message.Envelope) { e.ExpiresAt = time.Time{} }, map[string]string{"Ttl": "2419200"}},
		"campaign": {p, func(e *message.Envelope) {
			e.Position = message.PositionOf(message.Lane{Class: message.Campaign, Channel: message.ChannelPush}, 1, 0)
		}, map[string]string{"Urgency": "low"}},
		"collapse key": {p, func(e *message.Envelope) { e.Content.Push.CollapseKey = "score" }, map[string]string{"Topic": topic("key", "score")}},
		"each its own": {replacing, func(*message.Envelope) {}, map[string]string{"Topic": topic("id", envelope(1, "", newBrowser()).ID.String())}},
		"key first":    {replacing, func(e *message.Envelope) { e.Content.Push.CollapseKey = "score" }, map[string]string{"Topic": topic("key", "score")}},
	} {
		env := envelope(1, "https://push.example/x", newBrowser())
		c.change(env)
		h := c.p.header(env)
		for k, want := range c.want {
			if got := strings.Join(h[k], ""); got != want {
				t.Errorf("%s: %s is %q, want %q", name, k, got, want)
			}
		}
	}
	if n := len(topic("key", "score")); n != 32 {
		t.Errorf("a topic has %d characters", n)
	}
	if p.Capabilities().Repeats != delivery.RepeatsDoubled || replacing.Capabilities().Repeats != delivery.RepeatsReplaced {
		t.Error("capabilities")
	}
}

func TestOrigin(t *testing.T) {
	for text, want := range map[string]string{
		"https://Push.Example/x?y=1#z": "https://push.example", "https://push.example:443/": "https://push.example", "https://push.example:8443/a": "https://push.example:8443",
		"https://[2606:4700::1111]:443/a": "https://[2606:4700::1111]", "https://push443/": "https://push443", "https://push.example:": "https://push.example",
	} {
		u, err := endpoint(text, false)
		if err != nil || origin(u) != want {
			t.Errorf("%s: %v, %v", text, err, u)
		}
	}
}

func TestConfigRefused(t *testing.T) {
	rsaPEM := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("CANARY")}))
	for field, change := range map[string]func(*Config){
		"name":            func(c *Config) { c.Name = "" },
		"vapid_key":       func(c *Config) { c.VAPIDKey = "" },
		"vapid_key odd":   func(c *Config) { c.VAPIDKey = "CANARY" },
		"vapid_key zero":  func(c *Config) { c.VAPIDKey = strings.Repeat("A", 43) },
		"vapid_key PEM":   func(c *Config) { c.VAPIDKey = rsaPEM },
		"subject":         func(c *Config) { c.Subject = "" },
		"subject http":    func(c *Config) { c.Subject = "http://a.example" },
		"subject address": func(c *Config) { c.Subject = "ops@sender.example" },
		"connections":     func(c *Config) { c.Connections = -1 },
		"concurrency":     func(c *Config) { c.Concurrency = 20_000 },
		"reply_limit":     func(c *Config) { c.ReplyLimit = 1 },
	} {
		cfg := config(providertest.HTTPService{})
		change(&cfg)
		_, err := New(cfg)
		var fields message.FieldErrors
		if want, _, _ := strings.Cut(field, " "); !errors.As(err, &fields) || len(fields) != 1 || fields[0].Field != want {
			t.Errorf("%s: %v", field, err)
		} else if strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: the error shows the key: %v", field, err)
		}
	}
}
