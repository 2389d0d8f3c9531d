package app

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/bench"
	"github.com/stormpost/stormpost/internal/message"
)

// fragile is a provider that panics over some recipients, before or after it has
// handed over.
type fragile struct {
	bench.Loopback // for what it has nothing to say about

	mu           sync.Mutex
	asked, taken map[string]int
}

func newFragile() *fragile { return &fragile{asked: map[string]int{}, taken: map[string]int{}} }

func (f *fragile) Reserve(context.Context) (delivery.Slot, error) { return f, nil }

func (f *fragile) Send(_ context.Context, env *message.Envelope, last func() error) message.Result {
	name, _, _ := strings.Cut(env.Recipient, "@")
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked[name]++
	if name == "before" {
		panic("it can't be borne")
	}
	if err := last(); err != nil {
		return message.Result{Outcome: message.Returned}
	}
	f.taken[name]++
	if name == "after" {
		panic("too late")
	}
	return message.Result{Outcome: message.Sent, Code: "250"}
}

// A message over which the provider panics is held with its reason, or in doubt if
// it may have been handed over; the lane goes on, and each other message is
// delivered once: on the real stores, and as GET shows it.
func TestPanicParksTheMessageAlone(t *testing.T) {
	f := newFragile()
	s := serveWith(t, f)
	names := make([]string, 31)
	for i := range names {
		names[i] = fmt.Sprint("other-", i)
	}
	names[10], names[20] = "before", "after"
	ids := make(map[string]string)
	for _, name := range names {
		var out struct{ Messages []struct{ ID string } }
		resp, body := s.ask(http.MethodPost, "/v1/emails", s.key, map[string]any{"from": "app@example.com", "to": []string{name + "@example.net"}, "subject": name, "text": "Hello"})
		if err := json.Unmarshal(body, &out); err != nil || resp.StatusCode != http.StatusAccepted {
			t.Fatalf("%s: %s %s", name, resp.Status, body)
		}
		ids[name] = out.Messages[0].ID
	}
	type view struct {
		State, Reason string
		Attempts      []struct{ Kind, Outcome, Code, Reply, Because string }
	}
	get := func(name string) (v view) {
		t.Helper()
		resp, body := s.ask(http.MethodGet, "/v1/messages/"+ids[name], s.key, nil)
		if err := json.Unmarshal(body, &v); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s %s", name, resp.Status, body)
		}
		return v
	}
	for _, name := range names {
		want := message.StateSent
		switch name {
		case "before":
			want = message.StateHeld
		case "after":
			want = message.StateInDoubt
		}
		s.await(fmt.Sprintf("%s is %s", name, want), func() bool { return get(name).State == string(want) })
	}
	if v := get("before"); v.Reason != "panic: it can't be borne" || len(v.Attempts) != 2 || v.Attempts[0].Outcome != "returned" || v.Attempts[0].Reply != v.Reason || v.Attempts[1].Kind != "hold" {
		t.Errorf("before its hand-over: %+v", v)
	}
	if v := get("after"); len(v.Attempts) != 1 || v.Attempts[0].Outcome != "unknown" || v.Attempts[0].Reply != "panic: too late" {
		t.Errorf("after its hand-over: %+v", v)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range names {
		if want := map[bool]int{true: 1}[name != "before"]; f.taken[name] != want || f.asked[name] != 1 {
			t.Errorf("%s was handed over %d times, and tried %d times", name, f.taken[name], f.asked[name])
		}
	}
}
