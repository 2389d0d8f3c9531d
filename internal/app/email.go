package app

import (
	"fmt"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/delivery/postmark"
	"github.com/stormpost/stormpost/delivery/resend"
	"github.com/stormpost/stormpost/delivery/sendgrid"
	"github.com/stormpost/stormpost/delivery/ses"
	"github.com/stormpost/stormpost/delivery/webhook"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

// checkEmail is the judgement at the door of the providers that email goes to
// first.
func checkEmail(names []string) func(*message.Email) error {
	var checks []func(*message.Email) error
	for _, name := range names {
		if check := emailCheck(name); check != nil {
			checks = append(checks, check)
		}
	}
	return func(e *message.Email) error {
		for _, check := range checks {
			if err := check(e); err != nil {
				return err
			}
		}
		return nil
	}
}

// takesEmail says whether that provider can take some content; nil: it takes all.
func takesEmail(name string) func(*message.Content) bool {
	check := emailCheck(name)
	if check == nil {
		return nil
	}
	return func(c *message.Content) bool { return c.Email == nil || check(c.Email) == nil }
}

func emailCheck(name string) func(*message.Email) error {
	switch name {
	case "ses":
		return ses.Check
	case "resend":
		return resend.Check
	case "postmark":
		return postmark.Check
	case "sendgrid":
		return sendgrid.Check
	}
	return nil
}

// email makes the provider of that name, and says how many slots it has.
func (p *process) email(name string) (delivery.Provider, int, error) {
	switch name {
	case smtpName:
		pr, err := p.smtp()
		return pr, p.cfg.SMTP.Connections, err
	case "ses":
		c := p.cfg.SES
		key, err := p.creds.live(name+".key", name, c.Key, ses.CheckKey)
		if err != nil {
			return nil, 0, err
		}
		pr, err := ses.New(ses.Config{
			Options: overhttp.Options{Name: name, BaseURL: c.BaseURL, Concurrency: c.Concurrency, ReplyLimit: c.ReplyLimit, Logger: p.log},
			Region:  c.Region, Key: key, ConfigurationSet: c.ConfigurationSet,
		})
		return pr, c.Concurrency, err
	case "resend":
		c := p.cfg.Resend
		key, err := p.creds.live(name+".key", name, c.Key, overhttp.CheckKey)
		if err != nil {
			return nil, 0, err
		}
		pr, err := resend.New(resend.Config{
			Options: overhttp.Options{Name: name, BaseURL: c.BaseURL, Concurrency: c.Concurrency, ReplyLimit: c.ReplyLimit, Logger: p.log},
			Key:     key,
		})
		return pr, c.Concurrency, err
	case "postmark":
		c := p.cfg.Postmark
		key, err := p.creds.live(name+".key", name, c.Key, overhttp.CheckKey)
		if err != nil {
			return nil, 0, err
		}
		pr, err := postmark.New(postmark.Config{
			Options: overhttp.Options{Name: name, BaseURL: c.BaseURL, Concurrency: c.Concurrency, ReplyLimit: c.ReplyLimit, Logger: p.log},
			Key:     key, Stream: c.Stream,
		})
		return pr, c.Concurrency, err
	case "sendgrid":
		c := p.cfg.SendGrid
		key, err := p.creds.live(name+".key", name, c.Key, overhttp.CheckKey)
		if err != nil {
			return nil, 0, err
		}
		pr, err := sendgrid.New(sendgrid.Config{
			Options: overhttp.Options{Name: name, BaseURL: c.BaseURL, Concurrency: c.Concurrency, ReplyLimit: c.ReplyLimit, Logger: p.log},
			Key:     key,
		})
		return pr, c.Concurrency, err
	case "webhook":
		return p.webhook()
	}
	return nil, 0, fmt.Errorf("no such provider of email") // Validate has said so already
}

func (p *process) webhook() (delivery.Provider, int, error) {
	c := p.cfg.Webhook
	ch, err := message.ParseChannel(c.Channel)
	if err != nil {
		return nil, 0, err
	}
	secrets := []string{c.Secret.Reveal()}
	if c.NextSecret != "" {
		secrets = append(secrets, c.NextSecret.Reveal())
	}
	pr, err := webhook.New(webhook.Config{
		Options: overhttp.Options{Name: "webhook", BaseURL: c.URL, Concurrency: c.Concurrency, ReplyLimit: c.ReplyLimit, Logger: p.log},
		Secrets: secrets, Channel: ch, RepeatWindow: c.RepeatWindow, AllowPrivate: c.AllowPrivate,
	})
	return pr, c.Concurrency, err
}
