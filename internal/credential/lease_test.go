package credential

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// leaser is a Vault without a network, so that it works in a synctest bubble.
type leaser struct {
	mu       sync.Mutex
	asked    []string // method and path, in order
	made     int      // token-1, token-2: the secrets
	life     int      // of a lease, in seconds
	longest  time.Duration
	begun    time.Time // the last lease
	fixed    bool      // not renewable
	answers  map[string]answer
	token    string    // lookup-self's data
	tokenEnd time.Time // what it is then: its ttl counts down to here
	renewals int       // of the token
}

type answer struct {
	status int
	body   string
}

func (l *leaser) RoundTrip(req *http.Request) (*http.Response, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	path := strings.TrimPrefix(req.URL.Path, "/v1/")
	l.asked = append(l.asked, req.Method+" "+path)
	a, ok := l.answers[path]
	if !ok {
		a = l.answer(req, path)
	}
	return &http.Response{StatusCode: a.status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(a.body)), Request: req}, nil
}

func (l *leaser) answer(req *http.Request, path string) answer {
	var in struct {
		ID        string `json:"lease_id"`
		Increment int    `json:"increment"`
	}
	if req.Method == http.MethodPost {
		if err := json.NewDecoder(req.Body).Decode(&in); err != nil {
			return answer{400, err.Error()}
		}
	}
	switch path {
	case "db/creds/mail":
		l.made++
		l.begun = time.Now()
		return answer{200, fmt.Sprintf(`{"lease_id":"db/creds/mail/CANARY-%06d","lease_duration":%d,"renewable":%t,"data":{"username":"u","password":"token-%d"}}`,
			l.made, l.life, !l.fixed, l.made)}
	case "sys/leases/renew":
		left := in.Increment
		if l.longest > 0 {
			left = min(left, int((l.longest - time.Since(l.begun)).Seconds()))
		}
		if in.Increment != l.life || in.ID != fmt.Sprintf("db/creds/mail/CANARY-%06d", l.made) {
			return answer{400, `{"errors":["another lease than the last, or an odd increment"]}`}
		}
		return answer{200, fmt.Sprintf(`{"lease_id":%q,"lease_duration":%d,"renewable":true}`, in.ID, left)}
	case "auth/token/lookup-self":
		if !l.tokenEnd.IsZero() {
			return answer{200, fmt.Sprintf(`{"data":{"ttl":%d,"renewable":false}}`, int(time.Until(l.tokenEnd).Seconds()))}
		}
		return answer{200, `{"data":` + l.token + `}`}
	case "auth/token/renew-self":
		l.renewals++
		return answer{200, fmt.Sprintf(`{"auth":{"client_token":"CANARY","lease_duration":%d,"renewable":true}}`, in.Increment)}
	}
	return answer{404, `{"errors":[]}`}
}

func (l *leaser) set(path string, status int, body string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.answers == nil {
		l.answers = map[string]answer{}
	}
	if l.answers[path] = (answer{status, body}); status == 0 {
		delete(l.answers, path)
	}
}

// count is how often path was asked for.
func (l *leaser) count(path string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.asked {
		if strings.HasSuffix(a, " "+path) {
			n++
		}
	}
	return n
}

const creds, renew = "db/creds/mail", "sys/leases/renew"

// leased runs f in a bubble, with a credential of l's leases.
func leased(t *testing.T, l *leaser, f func(t *testing.T, c *Credential)) {
	if l.token == "" {
		l.token = `{"ttl":0,"renewable":false}`
	}
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.NewTextHandler(logs{t}, nil))
		token := New(Config{Name: "token", Source: Fixed("test", "CANARY-token"), Logger: log})
		t.Cleanup(token.Close)
		source := &Lease{URL: "http://vault", Token: token, Path: creds, Field: "password", Client: &http.Client{Transport: l}}
		c := New(Config{Name: "relay", Source: source, Logger: log})
		t.Cleanup(c.Close)
		f(t, c)
		if text := fmt.Sprintf("%v %+v %#v %+v", source, source, source, c.Status()); strings.Contains(text, "token-") || strings.Contains(text, "CANARY-token") {
			t.Errorf("shows a secret: %s", text)
		}
	})
}

// A lease is renewed ahead of its end, and the secret stays the same; at its
// longest life there is a new one, and the old serves until that has proved itself.
func TestLeaseIsRenewed(t *testing.T) {
	l := &leaser{life: 3600, longest: 150 * time.Minute}
	leased(t, l, func(t *testing.T, c *Credential) {
		begin := time.Now()
		mustUse(t, c, "token-1").Accepted()
		if st := mustBe(t, c, Working, ""); !st.Expires.Equal(begin.Add(time.Hour)) || !strings.HasPrefix(st.Generations[0].Label, "lease ") {
			t.Errorf("%+v", st)
		}
		time.Sleep(46 * time.Minute)
		mustUse(t, c, "token-1").Accepted()
		if st := mustBe(t, c, Working, ""); st.Expires.Before(begin.Add(90*time.Minute)) || l.count(renew) != 1 || l.count(creds) != 1 || len(st.Generations) != 1 {
			t.Errorf("%+v after %v", st, l.asked)
		}
		for l.count(creds) == 1 {
			mustUse(t, c, "token-1").Accepted()
			time.Sleep(10 * time.Second)
		}
		if at := time.Since(begin); at < 2*time.Hour || at > 147*time.Minute {
			t.Errorf("a new one after %v", at)
		}
		canary := mustUse(t, c, "token-2")
		mustUse(t, c, "token-1").Accepted()
		canary.Accepted()
		mustUse(t, c, "token-2")
	})
}

// While the server is away, the old one serves until its last second.
func TestLeaseUntilTheLastSecond(t *testing.T) {
	for name, longest := range map[string]time.Duration{"away": 0, "at its longest life": 70 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			l := &leaser{life: 3600, longest: longest}
			leased(t, l, func(t *testing.T, c *Credential) {
				begin, ends := time.Now(), time.Hour
				mustUse(t, c, "token-1").Accepted()
				l.set(creds, 503, `{"errors":["Vault is sealed"]}`)
				if longest == 0 {
					l.set(renew, 503, `{"errors":["Vault is sealed"]}`)
				} else {
					ends = longest - time.Second // leases are of whole seconds
				}
				for time.Since(begin) < ends {
					mustUse(t, c, "token-1").Accepted()
					time.Sleep(time.Second)
				}
				if longest == 0 {
					mustBe(t, c, Missing, "renew the lease: vault answered 503: Vault is sealed")
				}
				time.Sleep(2 * time.Second)
				if u, err := c.Use(t.Context()); err == nil {
					t.Errorf("%v past its end", u)
				}
				l.set(creds, 0, "")
				l.set(renew, 0, "")
				time.Sleep(retryMax)
				mustUse(t, c, "token-2").Accepted()
				mustBe(t, c, Working, "")
			})
		})
	}
}

// What can't be renewed is replaced.
func TestLeaseIsReplaced(t *testing.T) {
	for name, spoil := range map[string]func(*leaser){
		"not renewable": func(l *leaser) { l.fixed = true },
		"revoked":       func(l *leaser) { l.set(renew, 400, `{"errors":["lease not found"]}`) },
		"no right":      func(l *leaser) { l.set(renew, 403, `{"errors":["permission denied"]}`) },
		"no JSON":       func(l *leaser) { l.set(renew, 200, `<html>CANARY`) },
	} {
		t.Run(name, func(t *testing.T) {
			l := &leaser{life: 3600}
			spoil(l)
			leased(t, l, func(t *testing.T, c *Credential) {
				mustUse(t, c, "token-1").Accepted()
				time.Sleep(38 * time.Minute)
				if l.count(creds) != 1 {
					t.Error("replaced too early")
				}
				time.Sleep(8 * time.Minute)
				mustUse(t, c, "token-2").Accepted()
				if n := l.count(renew); l.fixed && n > 0 || n > 1 {
					t.Errorf("%d renewals", n)
				}
				mustBe(t, c, Working, "")
			})
		})
	}
}

// A secret that the service refuses is replaced at once; but not without end.
func TestLeaseIsRefused(t *testing.T) {
	l := &leaser{life: 3600}
	leased(t, l, func(t *testing.T, c *Credential) {
		mustUse(t, c, "token-1").Accepted()
		time.Sleep(time.Minute)
		mustUse(t, c, "token-1").Rejected("535 no")
		mustUse(t, c, "token-2").Accepted()
		if l.count(renew) != 0 {
			t.Error("renewed what is refused")
		}
		for range 1800 {
			time.Sleep(time.Second)
			if u, err := c.Use(t.Context()); err == nil {
				u.Rejected("535 no")
			}
		}
		if n := l.count(creds); n < 5 || n > 15 {
			t.Errorf("%d secrets in half an hour, in which each was refused", n)
		}
	})
}

func TestLeaseAnswers(t *testing.T) {
	for name, tc := range map[string]struct {
		answer
		want string
	}{
		"no JSON":     {answer{200, `<html>CANARY`}, "answer can't be read"},
		"no field":    {answer{200, `{"lease_id":"x","lease_duration":60,"data":{"other":"CANARY"}}`}, "no text in its field password"},
		"no text":     {answer{200, `{"lease_id":"x","lease_duration":60,"data":{"password":1}}`}, "no text in its field password"},
		"no data":     {answer{200, `{"lease_id":"x","lease_duration":60}`}, "no text in its field password"},
		"no duration": {answer{200, `{"lease_id":"x","lease_duration":0,"data":{"password":"CANARY"}}`}, "has no duration"},
		"echo":        {answer{400, `{"errors":["what is CANARY-token?"]}`}, "400: what is [secret]?"},
		"refused":     {answer{403, `{"errors":["permission denied"]}`}, "403"},
	} {
		t.Run(name, func(t *testing.T) {
			l := &leaser{}
			l.set(creds, tc.status, tc.body)
			leased(t, l, func(t *testing.T, c *Credential) {
				_, err := c.Use(t.Context())
				if !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "CANARY") {
					t.Errorf("got %v, want %s", err, tc.want)
				}
			})
		})
	}
	// An odd life is bounded, and several fields make one value.
	l := &leaser{}
	l.set(creds, 200, `{"lease_id":"x","lease_duration":9000000000000000000,"renewable":true,"data":{"a":"token-1","b":"two"}}`)
	leased(t, l, func(t *testing.T, c *Credential) {
		source := &Lease{URL: "http://vault", Token: c.cfg.Source.(*Lease).Token, Path: creds, Field: "a:b", Client: &http.Client{Transport: l}}
		m, err := source.Fetch(t.Context())
		if err != nil || m.Value != "token-1:two" || m.Expires.After(time.Now().AddDate(11, 0, 0)) || m.Next.Before(time.Now()) {
			t.Errorf("%+v, %v", m, err)
		}
	})
	// What has no lease is read again and again.
	l = &leaser{}
	l.set(creds, 200, `{"lease_id":"","lease_duration":2764800,"data":{"password":"token-1"}}`)
	leased(t, l, func(t *testing.T, c *Credential) {
		mustUse(t, c, "token-1").Accepted()
		if st := mustBe(t, c, Working, ""); !st.Expires.IsZero() {
			t.Errorf("%+v", st)
		}
		l.set(creds, 200, `{"lease_id":"","lease_duration":2764800,"data":{"password":"token-2"}}`)
		time.Sleep(31 * time.Second)
		mustUse(t, c, "token-2").Accepted()
	})
}

// A token that nobody renews is told of in the last eighth of its life, and until
// its end, however often its secret is read.
func TestTokenThatEndsIsTold(t *testing.T) {
	l := &leaser{answers: map[string]answer{"secret/data/mail": {200, `{"data":{"data":{"value":"token-1"},"metadata":{"version":1}}}`}}}
	synctest.Test(t, func(t *testing.T) {
		l.tokenEnd = time.Now().Add(time.Hour)
		token := New(Config{Name: "token", Source: Fixed("test", "CANARY-token")})
		t.Cleanup(token.Close)
		c := New(Config{Name: "relay", Source: &Vault{URL: "http://vault", Token: token, Path: "mail", Field: "value", Client: &http.Client{Transport: late{l}}}})
		t.Cleanup(c.Close)
		mustUse(t, c, "token-1").Accepted()
		for left := time.Until(l.tokenEnd); left > 2*time.Second; left = time.Until(l.tokenEnd) {
			st := token.Status()
			if told := st.Health == ExpiringSoon; told != (left < 7*time.Minute) && (left < 7*time.Minute || left > 8*time.Minute) {
				t.Fatalf("%v before its end: %s, until %v", left, st.Health, st.Expires)
			}
			time.Sleep(10 * time.Second)
		}
	})
}

// late answers after 40 ms.
type late struct{ http.RoundTripper }

func (l late) RoundTrip(req *http.Request) (*http.Response, error) {
	time.Sleep(40 * time.Millisecond)
	return l.RoundTripper.RoundTrip(req)
}

// The token is renewed, too; with one that can't be, the lease ends.
func TestTokenIsRenewed(t *testing.T) {
	l := &leaser{life: 3600, token: `{"ttl":600,"renewable":true}`}
	leased(t, l, func(t *testing.T, c *Credential) {
		begin := time.Now()
		for time.Since(begin) < 6*time.Hour {
			mustUse(t, c, "token-1").Accepted()
			if h := c.Status().Health; h != Working {
				t.Fatalf("after %v: %s", time.Since(begin), h)
			}
			time.Sleep(10 * time.Second)
		}
		if n := l.renewals; n < 45 || n > 60 || l.count(creds) != 1 {
			t.Errorf("%d renewals of a token of ten minutes in six hours, %d secrets", n, l.count(creds))
		}
		l.set("auth/token/renew-self", 403, "")
		begin = time.Now()
		for c.cfg.Source.(*Lease).Token.Status().Health != ExpiringSoon {
			if time.Since(begin) > 9*time.Minute {
				t.Fatal("nobody is warned of a token that ends and can't be renewed")
			}
			time.Sleep(10 * time.Second)
		}
		if st := c.Status(); st.Expires.After(time.Now().Add(10 * time.Minute)) {
			t.Errorf("ends at %v, after the token that it is of", st.Expires)
		}
	})
}
