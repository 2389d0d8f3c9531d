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
			s := NewService(Options{Name: "main", Concurrency: 1, ReplyLimit: c.cfg.ReplyLimit, Now: c.cfg.Now}, c.cfg.Base, nil)
			defer s.Close()
			cred := credential.New(credential.Config{Name: "key", Source: &rotating{}})
			defer cred.Close()
			k, err := s.Keyed(t.Context(), cred)
			if err != nil {
				t.Fatal(err)
			}
			defer k.Release()
			var seen []string
			req := KeyedRequest{
				URL: s.URL("send"), Body: []byte("content"),
				Header: func(key string) (http.Header, error) {
					seen = append(seen, key)
					return http.Header{"Authorization": {key}}, nil
				},
				Judge: func(a Answer, hide []string) (message.Result, Standing) {
					return a.Result("", "refused "+strings.Join(hide, " "), hide...), Refused
				},
			}
			before := k.Account()
			if tied {
				req.Account = before
			}
			lasts := 0
			res := k.Hand(t.Context(), req, func() error { lasts++; return nil })
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
