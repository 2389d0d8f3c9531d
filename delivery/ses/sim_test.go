package ses

import (
	"testing"
	"time"

	"github.com/stormpost/stormpost/delivery/providertest"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/sim"
)

// The simulator verifies signatures by code of its own, over HTTP/1.1 and
// HTTP/2, and takes one line for the one recipient.
func TestSim(t *testing.T) {
	for _, secure := range []bool{false, true} {
		dir := t.TempDir()
		store, err := sim.OpenStore(dir, sim.StoreOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		s, err := sim.StartSES(t.Context(), sim.SESOptions{Store: store, AccessKeyID: "AKIDEXAMPLE", SecretKey: secret, Region: "eu-west-1", TLS: secure})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		send := func(change func(*Config)) message.Result {
			cfg := config()
			k := cfg.Key
			defer func() { k.Close(); cfg.Key.Close() }()
			cfg.BaseURL, cfg.RootCAs = s.URL(), s.Pool()
			change(&cfg)
			p, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			slot, err := p.Reserve(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer slot.Release()
			return slot.Send(t.Context(), providertest.Email(7, func(e *message.Email) {
				e.Cc, e.Text, e.HTML = []string{"c@reader.example"}, "Grüße", "<p>ü"
			}), func() error { return nil })
		}
		if r := send(func(*Config) {}); r.Outcome != message.Sent || r.Reference == "" {
			t.Fatalf("%+v", r)
		}
		for what, tc := range map[string]struct {
			change func(*Config)
			code   string
		}{
			"another secret":    {func(c *Config) { c.Key = providertest.FixedKey("AKIDEXAMPLE:wrong") }, "InvalidSignatureException"},
			"another key":       {func(c *Config) { c.Key = providertest.FixedKey("AKIDOTHER:another-secret") }, "UnrecognizedClientException"},
			"another region":    {func(c *Config) { c.Region = "us-east-1" }, "InvalidSignatureException"},
			"a clock too early": {func(c *Config) { c.Now = func() time.Time { return time.Now().Add(-6 * time.Minute) } }, "InvalidSignatureException"},
		} {
			if r := send(tc.change); r.Outcome != message.Returned || r.Code != tc.code {
				t.Errorf("%s: %+v", what, r)
			}
		}
		if r := send(func(c *Config) {
			c.Key = providertest.FixedKey(JoinKey("AKIDEXAMPLE", secret, "token"))
		}); r.Outcome != message.Sent {
			t.Errorf("with a session token: %+v", r)
		}
		all := store.List(0, nil)
		if len(all) != 2 || all[0].Provider != "ses" || all[0].To != "r7@reader.example" || all[0].From != "shop@sender.example" ||
			all[0].MessageID != providertest.Email(7, func(e *message.Email) { e.Cc, e.Text, e.HTML = []string{"c@reader.example"}, "Grüße", "<p>ü" }).ID.String() {
			t.Errorf("the service has %+v", all)
		}
	}
}
