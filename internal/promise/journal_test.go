//go:build linux

package promise

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"
)

// The ledger is away in three ways under load: what is submitted is answered
// 202, by processes that were started meanwhile, too; and told as journaled.
// When it is back, all of it is in the ledger once, numbered 1..N, and sent once.
func TestLedgerAway(t *testing.T) {
	for name, mode := range map[string]fault{"refused": refuse, "hung": hang, "cut amid commits": cut} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			front, dsn := newProxy(t, s.dsn)
			s.env = append(s.env, "STORMPOST_DSN="+dsn, "STORMPOST_ACCEPT_PATIENCE=1s")
			first := s.start("api")
			apis := []string{first.api}
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("the first API logged:\n%s", first.logs)
				}
			})
			s.start("worker,recovery")
			c := newClient(t, s.key, func() string { return apis[0] })
			submitAll(t, c, 40, mixed("before"))

			front.set(mode)
			waitAway(t, c, apis[0])
			apis = append(apis, s.start("api").api) // started while the ledger is away
			away := make([]order, 80)
			answers := make([]answer, len(away))
			var wg sync.WaitGroup
			for i := range away {
				away[i] = mixed("away")(i)
				away[i].Class = []string{"transactional", "trigger", "campaign"}[i%3]
				wg.Go(func() {
					began := time.Now()
					a, err := c.post(t.Context(), apis[i%2], away[i], away[i].Name)
					if err != nil || a.status != http.StatusAccepted {
						t.Errorf("%s: %d %v", away[i].Name, a.status, err)
						return
					}
					if took := time.Since(began); took > 5*time.Second {
						t.Errorf("%s: answered after %s", away[i].Name, took)
					}
					answers[i] = a
					if err := c.remember(away[i].Name); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if t.Failed() {
				return
			}
			for i, a := range answers {
				if a.Messages[0].State != "journaled" || a.Messages[0].Sequence != 0 {
					t.Errorf("%s: %+v, want journaled without a number", away[i].Name, a.Messages[0])
				}
			}
			// Again: the same id. And every process tells, one started now as well.
			a, err := c.post(t.Context(), apis[1], away[0], away[0].Name)
			if err != nil || a.status != http.StatusAccepted || a.ID != answers[0].ID {
				t.Errorf("resubmitted: %+v %v", a, err)
			}
			apis = append(apis, s.start("api").api)
			for _, api := range apis {
				within(t, 5*time.Second, func() error {
					for _, a := range answers[:10] {
						if status, state := s.look(api, a.Messages[0].ID); status != http.StatusOK || state != "journaled" {
							return fmt.Errorf("%s: %d %s, want 200 journaled", a.Messages[0].ID, status, state)
						}
					}
					return nil
				})
				unknown := answers[0].Messages[0].ID[:10] + "abcd" + answers[0].Messages[0].ID[14:]
				if status, _ := s.look(api, unknown); status != http.StatusServiceUnavailable {
					t.Errorf("an id that nobody knows: %d while the ledger is away, want 503", status)
				}
			}
			if mode == cut && front.withheld() == 0 {
				t.Error("no answer was withheld")
			}

			front.set(none)
			if v := s.settle(c, func() string { return apis[1] }, 2*time.Minute); len(v.doubts) > 0 && mode != cut {
				t.Errorf("%d in doubt, although no provider failed", len(v.doubts))
			}
			s.complete(apis[1], 5)
			for i, a := range answers {
				if status, state := s.look(apis[2], a.Messages[0].ID); status != http.StatusOK || state != "sent" {
					t.Errorf("%s: %d %s, want sent", away[i].Name, status, state)
				}
			}
		})
	}
}

// waitAway submits until the journal answers, which at first may take the
// ledger's patience.
func waitAway(t *testing.T, c *client, api string) {
	t.Helper()
	for i := range 20 {
		o := order{Name: fmt.Sprintf("turn-%d", i), Stream: "stream-0"}
		a, err := c.post(t.Context(), api, o, o.Name)
		if err != nil || a.status != http.StatusAccepted {
			t.Fatalf("%s: %d %v", o.Name, a.status, err)
		}
		if err := c.remember(o.Name); err != nil {
			t.Fatal(err)
		}
		if a.Messages[0].State == "journaled" {
			return
		}
	}
	t.Fatal("the ledger isn't away")
}

// within tries until check is content, for d.
func within(t *testing.T, d time.Duration, check func() error) {
	t.Helper()
	for deadline := time.Now().Add(d); ; time.Sleep(100 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Error(err)
			return
		}
	}
}

// look asks for a message once, as its tenant.
func (s *stage) look(api, id string) (status int, state string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 15*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, api+"/v1/messages/"+id, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Error(err)
		return 0, ""
	}
	defer resp.Body.Close()
	var m struct{ State string }
	_ = json.NewDecoder(resp.Body).Decode(&m)
	return resp.StatusCode, m.State
}

// complete audits the streams stream-0 on: each has numbers 1..N.
func (s *stage) complete(api string, streams int) {
	s.t.Helper()
	for i := range streams {
		var audit struct {
			First, Last int64
			Missing     []json.RawMessage
			States      map[string]int64
		}
		s.getAs(s.key, fmt.Sprintf("%s/v1/streams/stream-%d/audit", api, i), &audit)
		if audit.First != 1 || len(audit.Missing) != 0 || audit.States["sent"] != audit.Last {
			s.t.Errorf("stream-%d: %+v, want 1..N, all sent", i, audit)
		}
	}
}
