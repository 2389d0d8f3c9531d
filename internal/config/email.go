package config

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// SES is Amazon SES; an empty Region means none.
type SES struct {
	Region           string        `koanf:"region"`            // of Amazon SES for email, as eu-west-1; empty: none
	Key              Live          `koanf:"key"`               // access key of an IAM user or role that may ses:SendRawEmail: ID:SECRET, or ID:SECRET:TOKEN; as `credential:NAME`, too
	ConfigurationSet string        `koanf:"configuration_set"` // whose events tell of deliveries and bounces; empty: none
	EventsTopic      string        `koanf:"events_topic"`      // ARN of the SNS topic by which SES tells POST /events/ses of bounces; empty: nobody may
	BaseURL          string        `koanf:"base_url"`          // another base URL than the region's
	Concurrency      int           `koanf:"concurrency"`       // requests under way at once, of one process
	Rate             float64       `koanf:"rate"`              // hand-overs a second at most, of one process; 0: no bound
	ReplyLimit       time.Duration `koanf:"reply_limit"`       // how long an answer is waited for
}

// Resend is Resend, or a service with its API; an empty Key means none.
type Resend struct {
	Key          Live          `koanf:"key"`           // API key of Resend for email; empty: none; as `credential:NAME`, too
	EventsSecret Secret        `koanf:"events_secret"` // whsec_…, with which Resend signs what it tells POST /events/resend; empty: nobody may
	BaseURL      string        `koanf:"base_url"`      // of another service with Resend's API
	Concurrency  int           `koanf:"concurrency"`   // requests under way at once, of one process
	Rate         float64       `koanf:"rate"`          // hand-overs a second at most, of one process; 0: no bound
	ReplyLimit   time.Duration `koanf:"reply_limit"`   // how long an answer is waited for
}

// Postmark is Postmark, or a service with its API; an empty Key means none.
type Postmark struct {
	Key            Live          `koanf:"key"`             // API token of a Postmark server for email; empty: none; as `credential:NAME`, too
	Stream         string        `koanf:"stream"`          // Postmark's message stream
	EventsPassword Secret        `koanf:"events_password"` // in the URL that Postmark calls, https://postmark:PASSWORD@HOST/events/postmark; at least 16 characters; empty: nobody may
	BaseURL        string        `koanf:"base_url"`        // of another service with Postmark's API
	Concurrency    int           `koanf:"concurrency"`     // requests under way at once, of one process
	Rate           float64       `koanf:"rate"`            // hand-overs a second at most, of one process; 0: no bound
	ReplyLimit     time.Duration `koanf:"reply_limit"`     // how long an answer is waited for
}

// SendGrid is SendGrid, or a service with its API; an empty Key means none.
type SendGrid struct {
	Key         Live          `koanf:"key"`         // API key of SendGrid for email; empty: none; as `credential:NAME`, too
	EventsKey   string        `koanf:"events_key"`  // verification key of SendGrid's signed event webhook, which calls POST /events/sendgrid; empty: nobody may
	BaseURL     string        `koanf:"base_url"`    // of another service with SendGrid's API, or https://api.eu.sendgrid.com
	Concurrency int           `koanf:"concurrency"` // requests under way at once, of one process
	Rate        float64       `koanf:"rate"`        // hand-overs a second at most, of one process; 0: no bound
	ReplyLimit  time.Duration `koanf:"reply_limit"` // how long an answer is waited for
}

// Receiver is a receiver of one's own for messages; an empty URL means none.
type Receiver struct {
	URL          string        `koanf:"url"`           // gets each message by POST, signed as Standard Webhooks has it; empty: none
	Secret       Secret        `koanf:"secret"`        // that signs them: whsec_ and the base64 of 24 to 64 bytes
	NextSecret   Secret        `koanf:"next_secret"`   // signs them as well, while the receiver changes from one to the other
	Channel      string        `koanf:"channel"`       // whose messages it takes: email or push
	RepeatWindow time.Duration `koanf:"repeat_window"` // for how long the receiver drops repeats by their webhook-id; 0: it doesn't
	AllowPrivate bool          `koanf:"allow_private"` // allow receivers in private networks and on this machine, the latter also by http
	Concurrency  int           `koanf:"concurrency"`   // requests under way at once, of one process
	Rate         float64       `koanf:"rate"`          // hand-overs a second at most, of one process; 0: no bound
	ReplyLimit   time.Duration `koanf:"reply_limit"`   // how long an answer is waited for
}

// providerNames are those of all kinds of provider; the credentials of their
// settings have the same names.
var providerNames = []string{"smtp", "ses", "resend", "postmark", "sendgrid", "fcm", "webhook"}

// providers are all that can be configured for a channel, in the order in which
// they are preferred when no setting says otherwise.
func (c *Config) providers(ch message.Channel) (names []string) {
	for _, p := range []struct {
		name    string
		channel message.Channel
		there   bool
	}{
		{"smtp", message.ChannelEmail, c.SMTP.Addr != ""},
		{"ses", message.ChannelEmail, c.SES.Region != ""},
		{"resend", message.ChannelEmail, c.Resend.Key != ""},
		{"postmark", message.ChannelEmail, c.Postmark.Key != ""},
		{"sendgrid", message.ChannelEmail, c.SendGrid.Key != ""},
		{"fcm", message.ChannelPush, c.FCM.ServiceAccount != "" || c.FCM.Token != ""},
		{"apns", message.ChannelPush, c.APNs.Topic != ""},
		{"webpush", message.ChannelPush, c.WebPush.Subject != ""},
		{"webhook", c.Webhook.channel(), c.Webhook.URL != ""},
	} {
		if p.there && p.channel == ch {
			names = append(names, p.name)
		}
	}
	return names
}

func (r *Receiver) channel() message.Channel {
	ch, _ := message.ParseChannel(r.Channel) // Validate tells of an error
	return ch
}

// Email is the providers for email in order of preference.
func (c *Config) Email() []string {
	if len(c.Delivery.Email) > 0 {
		return c.Delivery.Email
	}
	return c.providers(message.ChannelEmail)
}

// EmailProviders are all that email may go to, the first of Email first.
func (c *Config) EmailProviders() []string {
	all := slices.Clone(c.Email())
	for _, r := range c.Delivery.Routes {
		for _, name := range r.Providers {
			if r.Channel == "email" && !slices.Contains(all, name) {
				all = append(all, name)
			}
		}
	}
	return all
}

// FirstEmail are those that email goes to first.
func (c *Config) FirstEmail() (names []string) {
	if all := c.Email(); len(all) > 0 {
		names = append(names, all[0])
	}
	for _, r := range c.Delivery.Routes {
		if r.Channel == "email" && len(r.Providers) > 0 && !slices.Contains(names, r.Providers[0]) {
			names = append(names, r.Providers[0])
		}
	}
	return names
}

// ReplyLimit is the longest of all providers.
func (c *Config) ReplyLimit() time.Duration {
	return max(c.SMTP.ReplyLimit, c.SES.ReplyLimit, c.Resend.ReplyLimit, c.Postmark.ReplyLimit, c.SendGrid.ReplyLimit, c.FCM.ReplyLimit,
		c.APNs.ReplyLimit, c.WebPush.ReplyLimit, c.Webhook.ReplyLimit)
}

// Rate is how many hand-overs a second a provider may get from one process; 0: any.
func (c *Config) Rate(provider string) float64 {
	return map[string]float64{
		"smtp": c.SMTP.Rate, "ses": c.SES.Rate, "resend": c.Resend.Rate, "postmark": c.Postmark.Rate, "sendgrid": c.SendGrid.Rate,
		"fcm": c.FCM.Rate, "apns": c.APNs.Rate, "webpush": c.WebPush.Rate, "webhook": c.Webhook.Rate,
	}[provider]
}

// validateProviders checks what concerns several of them; each of them checks
// its own when it is made.
func (c *Config) validateProviders(bad func(key, format string, args ...any)) {
	if _, err := message.ParseChannel(c.Webhook.Channel); err != nil {
		bad("webhook.channel", "want email or push, not %q", c.Webhook.Channel)
	}
	if (c.SES.Region == "") != (c.SES.Key == "") {
		bad("ses.key", "want both ses.region and ses.key, or neither")
	}
	if c.Webhook.RepeatWindow < 0 {
		bad("webhook.repeat_window", "is negative")
	}
	c.validateRoutes(bad)
	there := c.providers(message.ChannelEmail)
	for i, name := range c.Delivery.Email {
		if !slices.Contains(there, name) {
			bad(fmt.Sprintf("delivery.email[%d]", i), "no provider %q is configured for email, %s", name, only(there))
		}
		if slices.Contains(c.Delivery.Email[:i], name) {
			bad(fmt.Sprintf("delivery.email[%d]", i), "names %s again", name)
		}
	}
}

func only(names []string) string {
	if len(names) == 0 {
		return "nor any other"
	}
	return "only " + strings.Join(names, ", ")
}
