package overhttp

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
)

// rotating is a source that has another key at each fetch.
type rotating struct{ n atomic.Int32 }

func (r *rotating) Fetch(context.Context) (credential.Material, error) {
	return credential.Material{Value: credential.Secret(fmt.Sprintf("CANARY-%d", r.n.Add(1)))}, nil
}
func (r *rotating) String() string { return "rotating" }

// A key that is refused is renewed, and the request made once more; but not with
// the key of another account than the one that absorbs a repeat.
func TestKeyed(t *testing.T) {
	for name, tied := range map[string]bool{"renewed": false, "tied to an account": true} {
		t.Run(name, func(t *testing.T) {
			var hits atomic.Int32
			c := start(t, false, nil, func(_ int, c net.Conn) { answering(c, false, &hits, "401") })
			cred := credential.New(credential.Config{Name: "key", Source: &rotating{}})
			defer cred.Close()
			var seen []string
			o := Options{Name: "main", BaseURL: c.cfg.Base.String(), ReplyLimit: c.cfg.ReplyLimit, Now: c.cfg.Now}
			s, err := NewKeyed(&o, cred, API{
				Vendor: "Vendor", Path: []string{"send"},
				Encode: func(*message.Envelope) ([]byte, error) { return []byte("content"), nil },
				Sign: func(_ *http.Request, _ []byte, key string) error {
					seen = append(seen, key)
					return nil
				},
				Judge: func(a Answer, hide []string) (message.Result, Standing) {
					return a.Result("", "refused "+strings.Join(hide, " "), hide...), Refused
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			k, err := s.Slot(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer k.Release()
			env := new(message.Envelope)
			before := k.Account()
			if tied {
				env.Account = before
			}
			lasts := 0
			res := k.Send(t.Context(), env, func() error { lasts++; return nil })
			want := 2
			if tied {
				want = 1
			}
			if res.Outcome != message.Returned || lasts != 1 || len(seen) != want || int(hits.Load()) != want {
				t.Errorf("result %+v, %d requests with %d keys, last called %d times; want %d", res, hits.Load(), len(seen), lasts, want)
			}
			if text := fmt.Sprintf("%+v %s", res, k.Account()); strings.Contains(text, "CANARY") {
				t.Errorf("shows a key: %s", text)
			}
			if !tied && k.Account() == before {
				t.Error("another key has the same account")
			}
		})
	}
}
