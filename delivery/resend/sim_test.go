package resend

import (
	"context"
	"testing"
	"time"

	"github.com/stormpost/stormpost/delivery/providertest"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
	"github.com/stormpost/stormpost/internal/sim"
)

// startSim runs Resend's simulator over the store in dir until stop, with a
// provider of it.
func startSim(t *testing.T, dir string) (s *sim.ResendServer, p *Provider, stop func()) {
	t.Helper()
	store, err := sim.OpenStore(dir, sim.StoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s, err = sim.StartResend(t.Context(), sim.ResendOptions{Store: store, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	k := providertest.FixedKey(key)
	p, err = New(Config{Key: k, Options: overhttp.Options{Name: "main", BaseURL: s.URL()}})
	if err != nil {
		t.Fatal(err)
	}
	return s, p, func() {
		k.Close()
		for _, close := range []func() error{p.Close, s.Close, store.Close} {
			if err := close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func send(ctx context.Context, t *testing.T, p *Provider, env *message.Envelope) message.Result {
	t.Helper()
	slot, err := p.Reserve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer slot.Release()
	return slot.Send(ctx, env, func() error { return nil })
}

// taken is what the simulator has in dir.
func taken(t *testing.T, dir string) (all []sim.Taken) {
	t.Helper()
	if err := sim.ReadTaken(dir+"/"+sim.TakenFile, func(x sim.Taken) error { all = append(all, x); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

// A message whose answer was lost is repeated with the same key and bytes: the
// service has it once, also when it was restarted in between.
func TestRepeatIsAbsorbed(t *testing.T) {
	for _, do := range []sim.Action{sim.Drop, sim.Reset, sim.Partial, sim.Garbage} {
		t.Run(string(do), func(t *testing.T) {
			dir := t.TempDir()
			s, p, stop := startSim(t, dir)
			if err := s.SetFaults(sim.Fault{Step: sim.StepReply, Do: do, Times: 1}); err != nil {
				t.Fatal(err)
			}
			env := providertest.Email(1, nil)
			if r := send(t.Context(), t, p, env); r.Outcome != message.Unknown {
				t.Fatalf("the answer is lost: %+v", r)
			}
			env.Attempt = 2
			again := send(t.Context(), t, p, env)
			stop()
			s, p, stop = startSim(t, dir)
			defer stop()
			env.Attempt = 3
			restarted := send(t.Context(), t, p, env)
			all := taken(t, dir)
			if len(all) != 1 || all[0].MessageID != env.ID.String() || all[0].To != "r1@reader.example" || all[0].Subject != "Your code" {
				t.Fatalf("the service has %+v", all)
			}
			for _, r := range []message.Result{again, restarted} {
				if r.Outcome != message.Sent || r.Reference != all[0].Reference {
					t.Errorf("the repeat: %+v, want reference %s", r, all[0].Reference)
				}
			}
			if r := send(t.Context(), t, p, providertest.Email(2, nil)); r.Outcome != message.Sent || len(taken(t, dir)) != 2 {
				t.Errorf("another message: %+v", r)
			}
			_ = s
		})
	}
}

// The same key with other bytes, and while the first request is under way, says
// nothing about the message: it stays in doubt.
func TestConflictsStayInDoubt(t *testing.T) {
	dir := t.TempDir()
	s, p, stop := startSim(t, dir)
	defer stop()
	env := providertest.Email(1, nil)
	arrived := make(chan sim.Event, 1)
	if err := s.SetFaults(sim.Fault{Step: sim.StepBody, Do: sim.Hang, Times: 1, Hook: func(e sim.Event) { arrived <- e }}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan message.Result)
	go func() { first <- send(ctx, t, p, env) }()
	<-arrived
	if r := send(t.Context(), t, p, env); r.Outcome != message.Unknown || r.Code != "concurrent_idempotent_requests" {
		t.Errorf("while the first is under way: %+v", r)
	}
	cancel()
	if r := <-first; r.Outcome != message.Unknown {
		t.Errorf("given up: %+v", r)
	}
	deadline := time.Now().Add(10 * time.Second)
	for { // the simulator notices that the client has gone
		r := send(t.Context(), t, p, env)
		if r.Outcome == message.Sent {
			break
		}
		if r.Code != "concurrent_idempotent_requests" || time.Now().After(deadline) {
			t.Fatalf("after it: %+v", r)
		}
	}
	other := providertest.Email(1, nil)
	other.ID = env.ID
	other.Content.Email.Text = "another text"
	if r := send(t.Context(), t, p, other); r.Outcome != message.Unknown || r.Code != "invalid_idempotent_request" {
		t.Errorf("other bytes: %+v", r)
	}
	if n := len(taken(t, dir)); n != 1 {
		t.Errorf("the service has %d messages", n)
	}
}

// What the encoder makes of any content is by the rules of the API.
func TestSimTakesEverything(t *testing.T) {
	dir := t.TempDir()
	_, p, stop := startSim(t, dir)
	defer stop()
	for n, change := range []func(*message.Email){
		func(e *message.Email) { e.Text, e.HTML = "", "<p>" },
		func(e *message.Email) {
			e.Text, e.Attachments = "", []message.Attachment{{Filename: "a.bin", Content: []byte{1}}}
		},
		func(e *message.Email) { e.From = `"Läden, Bücher" <shop@bücher.example>` },
		func(e *message.Email) { e.ReplyTo = []string{"h@sender.example"}; e.Cc = []string{"c@reader.example"} },
	} {
		if r := send(t.Context(), t, p, providertest.Email(n, change)); r.Outcome != message.Sent {
			t.Errorf("%d: %+v", n, r)
		}
	}
	if n := len(taken(t, dir)); n != 4 {
		t.Errorf("the service has %d messages, one for each recipient, want 4", n)
	}
}
