package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/delivery/fcm"
	"github.com/stormpost/stormpost/delivery/smtp"
	"github.com/stormpost/stormpost/internal/broker"
	"github.com/stormpost/stormpost/internal/config"
	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
)

// The providers' names, as attempts and holds show them.
const (
	smtpName = "smtp"
	fcmName  = "fcm"
)

// withoutProviders is cfg for when the loopback takes everything.
func withoutProviders(cfg config.Config) config.Config {
	cfg.SMTP.Addr, cfg.SES.Region, cfg.Resend.Key, cfg.Postmark.Key, cfg.SendGrid.Key = "", "", "", "", ""
	cfg.FCM.ServiceAccount, cfg.FCM.Token, cfg.APNs.Topic, cfg.WebPush.Subject = "", "", "", ""
	cfg.Webhook.URL, cfg.Delivery.Email, cfg.Delivery.Routes = "", nil, nil
	return cfg
}

func (p *process) buildWorker() error {
	routes, err := p.buildProviders()
	if err != nil {
		return err
	}
	cfg, err := p.deliveryConfig(routes)
	if err != nil {
		return err
	}
	p.worker, err = delivery.New(cfg)
	return err
}

// buildProviders makes those that are configured, and what they sign in with.
func (p *process) buildProviders() (map[message.Channel][]delivery.Route, error) {
	routes := make(map[message.Channel][]delivery.Route)
	add := func(name string, pr delivery.Provider, slots int, err error, platforms ...string) error {
		if err != nil {
			return bySetting(name, err)
		}
		p.providers = append(p.providers, pr)
		p.creds.need(pr)
		routes[pr.Channel()] = append(routes[pr.Channel()], delivery.Route{
			Provider: pr, Slots: slots, Rate: p.cfg.Rate(pr.Name()), Platforms: platforms, Takes: takesEmail(pr.Name()),
		})
		return nil
	}
	if p.loopback != nil {
		p.cfg = withoutProviders(p.cfg)
	}
	if err := p.buildCredentials(); err != nil {
		return nil, err
	}
	if p.loopback != nil {
		_ = add(p.loopback.Name(), p.loopback, 0, nil)
	}
	for _, name := range p.cfg.EmailProviders() {
		pr, slots, err := p.email(name)
		if err := add(name, pr, slots, err); err != nil {
			return nil, err
		}
	}
	if err := p.addPush(add); err != nil {
		return nil, err
	}
	if p.cfg.Webhook.URL != "" && p.cfg.Webhook.Channel == "push" {
		pr, slots, err := p.webhook()
		if err := add("webhook", pr, slots, err); err != nil {
			return nil, err
		}
	}
	return routes, nil
}

// bySetting names each field that a provider finds wrong as the settings do. Any
// other error begins with its setting as it is.
func bySetting(provider string, err error) error {
	var fields message.FieldErrors
	if !errors.As(err, &fields) {
		return err
	}
	var all []error
	for _, f := range fields {
		key := provider + "." + f.Field
		all = append(all, fmt.Errorf("%s: %s", cmp.Or(otherwise[key], key), f.Problem))
	}
	return errors.Join(all...)
}

// otherwise are the settings that providers name otherwise.
var otherwise = map[string]string{
	"webhook.base_url": "webhook.url", "webhook.secrets[0]": "webhook.secret", "webhook.secrets[1]": "webhook.next_secret",
}

func (p *process) deliveryConfig(routes map[message.Channel][]delivery.Route) (delivery.Config, error) {
	d := p.cfg.Delivery
	senders := make(map[message.Lane]int)
	for name, n := range d.Senders {
		l, err := message.ParseLane(name)
		if err != nil {
			return delivery.Config{}, err
		}
		senders[l] = n
	}
	doubts := make(map[message.Lane]delivery.DoubtPolicy)
	for name, policy := range d.Doubts {
		l, err := message.ParseLane(name)
		if err != nil {
			return delivery.Config{}, err
		}
		doubts[l] = delivery.DoubtPolicy(policy)
	}
	orders, err := orders(p.cfg)
	if err != nil {
		return delivery.Config{}, err
	}
	return delivery.Config{
		Ledger: trailed{p.ledger, p.clusters}, Routes: routes, Orders: orders, Senders: senders, Doubts: doubts,
		Retry:      delivery.Schedule{Base: d.RetryBase, Max: d.RetryMax},
		ClaimValid: d.ClaimValid, ShutdownGrace: d.ShutdownGrace, BeatEvery: p.cfg.Ledger.BeatEvery,
		Clock:     turnedClock(os.Getenv(clockVariable), p.log),
		KafkaAway: p.clusters.away, FeedRate: p.clusters.placed.rate,
		Log: p.log, Meters: p.tel.MeterProvider, Tracers: p.tel.TracerProvider,
	}, nil
}

// orders are the settings' routes, and behind them email's order of preference.
func orders(cfg config.Config) ([]delivery.Order, error) {
	var all []delivery.Order
	for i, r := range cfg.Delivery.Routes {
		ch, class, err := r.Parse()
		if err != nil {
			return nil, fmt.Errorf("delivery.routes[%d]: %w", i, err)
		}
		all = append(all, delivery.Order{Channel: ch, Class: class, Tenant: r.Tenant, Providers: r.Providers})
	}
	if names := cfg.Email(); len(names) > 0 {
		all = append(all, delivery.Order{Channel: message.ChannelEmail, Providers: names})
	}
	return all, nil
}

func (p *process) smtp() (*smtp.Provider, error) {
	c := p.cfg.SMTP
	keys, err := dkimKeys(c.DKIM)
	if err != nil {
		return nil, err
	}
	var password *credential.Credential
	if c.Password != "" {
		if password, err = p.creds.live("smtp.password", smtpName, c.Password, smtpCheck(c.Auth)); err != nil {
			return nil, err
		}
	}
	return smtp.New(smtp.Config{
		Name: smtpName, Addr: c.Addr, Username: c.Username, Credential: password, Auth: smtp.AuthMode(c.Auth),
		TLS: smtp.TLSMode(c.TLS), ServerName: c.ServerName, LocalName: c.LocalName,
		Connections: c.Connections, ReplyLimit: c.ReplyLimit, DKIM: keys, Logger: p.log,
	})
}

func (p *process) fcm() (*fcm.Provider, error) {
	c := p.cfg.FCM
	token, project, err := p.fcmToken()
	if err != nil {
		return nil, err
	}
	return fcm.New(fcm.Config{
		Name: fcmName, Project: project, Token: token, BaseURL: c.BaseURL, Concurrency: c.Concurrency, ReplyLimit: c.ReplyLimit, Logger: p.log,
	})
}

// fcmToken is the access tokens for FCM, and the project that they are for.
func (p *process) fcmToken() (token *credential.Credential, project string, err error) {
	c := p.cfg.FCM
	if c.Token != "" {
		token, err = p.creds.live("fcm.token", fcmName, c.Token, smtp.CheckToken)
		return token, c.Project, err
	}
	project = c.Project
	if _, named := c.ServiceAccount.Credential(); !named {
		text := c.ServiceAccount.Value()
		if path, ok := c.ServiceAccount.File(); ok {
			b, err := p.creds.rules().Read(path)
			if err != nil {
				return nil, "", fmt.Errorf("fcm.service_account: %w", err)
			}
			text = string(b)
		}
		account, err := credential.ParseServiceAccount([]byte(text))
		if err != nil {
			return nil, "", fmt.Errorf("fcm.service_account: %w", err)
		}
		project = cmp.Or(project, account.ProjectID)
	}
	key, err := p.creds.live("fcm.service_account", fcmName+".service_account", c.ServiceAccount, credential.CheckServiceAccount(project, c.TokenURL))
	if err != nil {
		return nil, "", err
	}
	return p.creds.add(fcmName, &credential.JWTBearer{Key: key, Scope: fcm.Scope, URL: c.TokenURL, Client: p.creds.client}, nil), project, nil
}

func dkimKeys(configured []config.DKIM) ([]smtp.DKIMKey, error) {
	var keys []smtp.DKIMKey
	for i, d := range configured {
		signer, err := smtp.ParseDKIMKey([]byte(d.Key.Reveal()))
		if err != nil { // it holds no key material
			return nil, fmt.Errorf("smtp.dkim[%d].key: %w", i, err)
		}
		keys = append(keys, smtp.DKIMKey{Domain: d.Domain, Selector: d.Selector, Key: signer})
	}
	return keys, nil
}

// consumed hands what Kafka brings to the worker.
type consumed struct {
	worker  *delivery.Worker
	ledger  *dedupe.Ledger
	cluster *cluster
}

var _ broker.Handler = consumed{}

func (c consumed) Handle(ctx context.Context, lane message.Lane, r *broker.Record) {
	// What is committed was told: so nothing is handled and nowhere known.
	err := c.worker.Offer(ctx, lane, r.Item, func() { c.cluster.trail.Then(r.Finish) })
	if err != nil && ctx.Err() == nil && !errors.Is(err, delivery.ErrStopping) {
		// It can't be: the broker checked the lane. Unfinished, it comes again.
		panic(err)
	}
}

func (c consumed) Park(ctx context.Context, poison broker.Poison) error {
	source := fmt.Sprintf("%s/%d/%d", poison.Topic, poison.Partition, poison.Offset)
	return c.ledger.Park(ctx, c.cluster.source(source), poison.Value, poison.Reason)
}
