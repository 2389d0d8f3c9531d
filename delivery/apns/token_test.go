package apns

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/delivery/providertest"
	"github.com/stormpost/stormpost/internal/message"
)

// A token that is refused for its age is replaced and the request made again,
// with the same body, and no attempt is spent. One that is too young to be
// replaced leaves the messages where they are.
func TestTokenIsRefused(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	var good string // empty: any
	now := time.Now()
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	s := providertest.ServeHTTP2(t, func(w http.ResponseWriter, r *http.Request, body []byte) {
		mu.Lock()
		defer mu.Unlock()
		token := strings.TrimPrefix(r.Header.Get("Authorization"), "bearer ")
		seen = append(seen, token+" "+string(body))
		if good == "old" {
			good = "not " + token
		}
		if good == "none" || good == "not "+token {
			w.WriteHeader(403)
			fmt.Fprint(w, `{"reason":"ExpiredProviderToken"}`)
		}
	})
	cfg := config(s)
	cfg.Token = token(t, clock)
	p := newProvider(t, cfg)
	defer p.Close()
	send := func() message.Result {
		t.Helper()
		slot, err := p.Reserve(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer slot.Release()
		lasts := 0
		res := slot.Send(t.Context(), envelope(1), func() error { lasts++; return nil })
		if lasts != 1 {
			t.Errorf("last was called %d times", lasts)
		}
		return res
	}
	if res := send(); res.Outcome != message.Sent {
		t.Fatalf("result %+v", res)
	}
	mu.Lock()
	good, now = "old", now.Add(25*time.Minute)
	mu.Unlock()
	if res := send(); res.Outcome != message.Sent || len(seen) != 3 || seen[1] != seen[0] || seen[2] == seen[0] {
		t.Errorf("result %+v after %d requests", res, len(seen))
	}
	for _, s := range seen {
		if _, body, _ := strings.Cut(s, " "); !strings.HasSuffix(seen[0], body) {
			t.Errorf("another body: %s", s)
		}
	}
	mu.Lock()
	good = "none"
	mu.Unlock()
	res := send()
	if res.Outcome != message.Returned || res.Code != "ExpiredProviderToken" || len(seen) != 4 {
		t.Errorf("result %+v after %d requests", res, len(seen))
	}
	last, _, _ := strings.Cut(seen[3], " ")
	if strings.Contains(fmt.Sprintf("%+v", res), last) {
		t.Error("the result shows the token")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if slot, err := p.Reserve(ctx); err == nil || strings.Contains(err.Error(), last) {
		t.Errorf("the next message is begun with a refused token: %v, %v", slot, err)
	}
}

// A token that was refused by mistake, and is too young to be replaced, is tried
// again by the next hand-over that meets the refusal.
func TestTokenIsTriedAgain(t *testing.T) {
	var mu sync.Mutex
	now, requests := time.Now(), 0
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	s := providertest.ServeHTTP2(t, func(w http.ResponseWriter, _ *http.Request, _ []byte) {
		mu.Lock()
		defer mu.Unlock()
		if requests++; requests == 2 || requests == 3 {
			w.WriteHeader(403)
			fmt.Fprint(w, `{"reason":"InvalidProviderToken"}`)
		}
	})
	cfg := config(s)
	cfg.Token = token(t, clock)
	p := newProvider(t, cfg)
	defer p.Close()
	var slots []delivery.Slot
	for range 3 {
		slot, err := p.Reserve(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer slot.Release()
		slots = append(slots, slot)
	}
	for n, want := range []message.Outcome{message.Sent, message.Returned, message.Sent} {
		if res := slots[n].Send(t.Context(), envelope(n), func() error { return nil }); res.Outcome != want {
			t.Errorf("hand-over %d: %+v, want %s", n, res, want)
		}
		mu.Lock()
		now = now.Add(200 * time.Millisecond)
		mu.Unlock()
	}
}

// Whatever is documented to be wrong with a provider token is the message's fault
// in no case.
func TestTokenReasons(t *testing.T) {
	for _, reason := range []string{
		"ExpiredProviderToken", "InvalidProviderToken", "MissingProviderToken", "UnrelatedKeyIdInToken", "BadEnvironmentKeyIdInToken",
	} {
		s := providertest.ServeHTTP2(t, func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			w.WriteHeader(403)
			fmt.Fprintf(w, `{"reason":%q}`, reason)
		})
		cfg := config(s)
		cfg.Token = token(t, time.Now)
		p := newProvider(t, cfg)
		slot, err := p.Reserve(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if res := slot.Send(t.Context(), envelope(1), func() error { return nil }); res.Outcome != message.Returned || res.Code != reason {
			t.Errorf("%s: %+v", reason, res)
		}
		slot.Release()
		p.Close()
	}
}

// A token has proved itself once APNs looked at what it came with; an answer that
// anybody gets says nothing of it.
func TestWhatProvesAToken(t *testing.T) {
	for reason, proves := range map[string]bool{
		"200 ": true, "400 BadDeviceToken": true, "400 DeviceTokenNotForTopic": true, "410 Unregistered": true, "410 ExpiredToken": true,
		"400 ": false, "400 IdleTimeout": false, "403 Forbidden": false, "403 InvalidProviderToken": false, "404 BadPath": false, "429 TooManyRequests": false,
		"429 TooManyProviderTokenUpdates": false, "500 InternalServerError": false, "502 ": false, "503 ServiceUnavailable": false, "503 BadDeviceToken": false,
	} {
		status, code, _ := strings.Cut(reason, " ")
		s := providertest.ServeHTTP2(t, func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			n, _ := strconv.Atoi(status)
			w.WriteHeader(n)
			if n != 200 {
				fmt.Fprintf(w, `{"reason":%q}`, code)
			}
		})
		cfg := config(s)
		cfg.Token = token(t, time.Now)
		p := newProvider(t, cfg)
		slot, err := p.Reserve(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		res := slot.Send(t.Context(), envelope(1), func() error { return nil })
		if got := !cfg.Token.Status().LastOK.IsZero(); got != proves {
			t.Errorf("%s: proves the token: %t, want %t; %+v", reason, got, proves, res)
		}
		slot.Release()
		p.Close()
	}
}

// A token of another key than the connection began with is as good as ever: it
// takes another connection, and the old ones take no more requests.
func TestTokenOfAnotherKey(t *testing.T) {
	var mu sync.Mutex
	first := ""
	var seen []string // connection and token
	s := providertest.ServeHTTP2(t, func(w http.ResponseWriter, r *http.Request, _ []byte) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.RemoteAddr+" "+r.Header.Get("Authorization"))
		if first == "" {
			first = r.RemoteAddr
		}
		switch {
		case r.RemoteAddr == first:
			w.WriteHeader(403)
			fmt.Fprint(w, `{"reason":"UnrelatedKeyIdInToken"}`)
		case strings.HasSuffix(r.URL.Path, "/00"):
			w.WriteHeader(400)
			fmt.Fprint(w, `{"reason":"BadDeviceToken"}`)
		}
	})
	cfg := config(s)
	cfg.Token = token(t, time.Now)
	p := newProvider(t, cfg)
	defer p.Close()
	send := func() message.Result {
		slot, err := p.Reserve(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer slot.Release()
		return slot.Send(t.Context(), envelope(1), func() error { return nil })
	}
	for range 2 {
		if res := send(); res.Outcome != message.Sent {
			t.Errorf("result %+v", res)
		}
	}
	connOf := func(i int) string { c, _, _ := strings.Cut(seen[i], " "); return c }
	if len(seen) != 3 || connOf(0) == connOf(1) || connOf(1) != connOf(2) {
		t.Errorf("connections and tokens: %q", seen)
	}
	first, seen = "", nil
	if err := p.Authenticate(t.Context()); err != nil || len(seen) != 2 {
		t.Errorf("Authenticate: %v, after %q", err, seen)
	}
	if st := cfg.Token.Status(); st.Rejections > 0 {
		t.Errorf("the token counts as refused: %+v", st)
	}
}
