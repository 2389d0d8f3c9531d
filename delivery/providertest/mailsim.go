package providertest

import (
	"context"
	"crypto/x509"
	"fmt"
	"testing"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
	"github.com/stormpost/stormpost/internal/sim"
)

// MailService is the simulator of a service that takes email over HTTP.
type MailService interface {
	URL() string
	Pool() *x509.CertPool
	SetFaults(...sim.Fault) error
	ClearFaults()
	Close() error
}

// MailSim is a provider of email, and the simulator of its service.
type MailSim struct {
	Key   string
	Start func(ctx context.Context, o sim.MailOptions) (MailService, error)
	New   func(key *credential.Credential, o overhttp.Options) (delivery.Provider, error)
}

// RunMailSim has the provider hand over to the simulator: what its encoder makes
// of any content is by the simulator's rules, which were written apart from it. An
// answer that is lost after the message was stored is a doubt; before, it was not
// taken or is one, too, and never sent again.
func RunMailSim(t *testing.T, c MailSim) {
	for _, secure := range []bool{false, true} {
		store, err := sim.OpenStore(t.TempDir(), sim.StoreOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		s, err := c.Start(t.Context(), sim.MailOptions{Store: store, Key: c.Key, TLS: secure})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		send := func(secret string, n int, change func(*message.Email)) message.Result {
			k := FixedKey(secret)
			defer k.Close()
			p, err := c.New(k, overhttp.Options{Name: "main", BaseURL: s.URL(), RootCAs: s.Pool()})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			if err := p.(delivery.Authenticator).Authenticate(t.Context()); (err == nil) != (secret == c.Key) {
				t.Errorf("Authenticate: %v", err)
			}
			slot, err := p.Reserve(t.Context())
			if secret != c.Key {
				if err == nil {
					t.Error("a refused key is used")
					slot.Release()
				}
				return message.Result{}
			}
			if err != nil {
				t.Fatal(err)
			}
			defer slot.Release()
			return slot.Send(t.Context(), Email(n, change), func() error { return nil })
		}
		send("another", 0, nil)
		contents := []func(*message.Email){
			func(e *message.Email) { e.Text, e.HTML = "", "<p>" },
			func(e *message.Email) {
				e.HTML, e.Headers = "<p>ü", map[string]string{"List-Unsubscribe": "<https://s.example/u>"}
			},
			func(e *message.Email) {
				e.Text, e.Attachments = "", []message.Attachment{{Filename: "a.pdf", Content: []byte{1}}, {Filename: "l.png", ContentType: "image/png", ContentID: "logo", Content: []byte("x")}}
			},
			func(e *message.Email) { e.From = "\"Läden, Bücher\" <shop@bücher.example>" },
			func(e *message.Email) {
				e.ReplyTo = []string{"Help <h@sender.example>", "h2@sender.example"}
				e.Cc = []string{"c@reader.example"}
			},
		}
		for n, change := range contents {
			if r := send(c.Key, n, change); r.Outcome != message.Sent || r.Reference == "" {
				t.Errorf("%d: %+v", n, r)
			}
		}
		all := store.List(0, nil)
		if len(all) != len(contents) || all[0].To != fmt.Sprintf("r%d@reader.example", len(contents)-1) && all[0].To != "r0@reader.example" {
			t.Errorf("the service has %d messages, one for each recipient, want %d", len(all), len(contents))
		}
		for _, x := range all {
			if _, err := message.ParseID(x.MessageID); err != nil {
				t.Errorf("%s has the id %q", x.To, x.MessageID)
			}
		}
		for n, f := range []sim.Fault{
			{Step: sim.StepReply, Do: sim.Drop}, {Step: sim.StepReply, Do: sim.Reset}, {Step: sim.StepReply, Do: sim.Partial},
			{Step: sim.StepReply, Do: sim.Garbage}, {Step: sim.StepBody, Do: sim.Drop}, {Step: sim.StepReply, Do: sim.Answer, Code: 500},
		} {
			had := store.Count()
			if err := s.SetFaults(f); err != nil {
				t.Fatal(err)
			}
			r := send(c.Key, 100+n, nil)
			s.ClearFaults()
			want := 0
			if f.Step == sim.StepReply {
				want = 1
			}
			if got := store.Count() - had; r.Outcome != message.Unknown || int(got) != want {
				t.Errorf("%s %s: %+v, stored %d times", f.Step, f.Do, r, got)
			}
		}
	}
}
