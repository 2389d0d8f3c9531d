package app

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/config"
	"github.com/stormpost/stormpost/internal/message"
)

// everyEmail configures every provider of email.
func everyEmail() config.Config {
	c := config.Default()
	c.SMTP.Addr, c.SES.Region, c.SES.Key = "relay:25", "eu-west-1", "AKID:secret"
	c.Resend.Key, c.Postmark.Key, c.SendGrid.Key = "CANARY-r", "CANARY-p", "CANARY-s"
	c.Webhook.URL, c.Webhook.Secret = "https://receiver.example/in", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	return c
}

func made(t *testing.T, c config.Config) *process {
	t.Helper()
	p := &process{cfg: c, log: slog.New(slog.DiscardHandler)}
	if err := p.buildCredentials(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.creds.close)
	return p
}

// Each setting makes the provider of its name, with its slots.
func TestEmailProviders(t *testing.T) {
	c := everyEmail()
	c.Webhook.RepeatWindow = 1
	p := made(t, c)
	if got := strings.Join(c.Email(), " "); got != "smtp ses resend postmark sendgrid webhook" {
		t.Fatalf("providers: %s", got)
	}
	absorbs := map[string]bool{"resend": true, "webhook": true}
	for _, name := range c.Email() {
		pr, slots, err := p.email(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if pr.Name() != name || pr.Channel() != message.ChannelEmail || slots < 1 || pr.ReplyLimit() > c.ReplyLimit() {
			t.Errorf("%s: %s for %v, %d slots, reply limit %v", name, pr.Name(), pr.Channel(), slots, pr.ReplyLimit())
		}
		if got := pr.Capabilities().Repeats == delivery.RepeatsAbsorbed; got != absorbs[name] {
			t.Errorf("%s: absorbs repeats: %v", name, got)
		}
		if err := pr.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What is wrong with a key is told by its setting, and not shown.
func TestEmailKeysRefused(t *testing.T) {
	for setting, change := range map[string]func(*config.Config){
		"ses.key":      func(c *config.Config) { c.SES.Key = "CANARY" },
		"resend.key":   func(c *config.Config) { c.Resend.Key = "CANARY key" },
		"postmark.key": func(c *config.Config) { c.Postmark.Key = "CANARY\nkey" },
		"sendgrid.key": func(c *config.Config) { c.SendGrid.Key = "CANARY\x00" },
	} {
		c := everyEmail()
		change(&c)
		name, _, _ := strings.Cut(setting, ".")
		_, _, err := made(t, c).email(name)
		if err == nil || !strings.Contains(err.Error(), setting) || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: %v", setting, err)
		}
	}
}

// The door asks the providers that email goes to first.
func TestEmailIsCheckedAtTheDoor(t *testing.T) {
	e := &message.Email{From: "zoë@a.example", To: []string{"b@b.example"}, Text: strings.Repeat("x", 6<<20)}
	for names, field := range map[string]string{
		"": "", "smtp": "", "smtp ses": "from: ", "ses smtp": "from: ", "resend": "subject: ", "sendgrid": "subject: ", "postmark": "text: ", "webhook": "",
	} {
		check := checkEmail(strings.Fields(names))
		var err error
		if check != nil {
			err = check(e)
		}
		if (err == nil) != (field == "") || err != nil && !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%q: %v, want %q", names, err, field)
		}
	}
}

// The settings' routes come before email's order of preference, and all of their
// providers are made.
func TestOrders(t *testing.T) {
	c := everyEmail()
	c.Delivery.Email = []string{"smtp", "ses"}
	c.Delivery.Routes = []config.Route{{Channel: "email", Class: "campaign", Tenant: "shop", Providers: []string{"resend", "smtp"}}}
	got, err := orders(c)
	if err != nil || len(got) != 2 {
		t.Fatalf("%+v, %v", got, err)
	}
	if o := got[0]; o.Channel != message.ChannelEmail || o.Class != message.Campaign || o.Tenant != "shop" || strings.Join(o.Providers, " ") != "resend smtp" {
		t.Errorf("the route: %+v", o)
	}
	if o := got[1]; o.Channel != message.ChannelEmail || o.Class != 0 || o.Tenant != "" || strings.Join(o.Providers, " ") != "smtp ses" {
		t.Errorf("behind it: %+v", o)
	}
	if all := strings.Join(c.EmailProviders(), " "); all != "smtp ses resend" {
		t.Errorf("providers: %s", all)
	}
	if got, err := orders(withoutProviders(c)); err != nil || len(got) != 0 {
		t.Errorf("without providers: %+v, %v", got, err)
	}
}
