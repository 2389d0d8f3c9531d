package app

import (
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/delivery/apns"
	"github.com/stormpost/stormpost/delivery/fcm"
	"github.com/stormpost/stormpost/delivery/webpush"
	"github.com/stormpost/stormpost/internal/config"
	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

// checkPush is the judgement at the door of the provider that a push goes to.
func checkPush(cfg config.Config) func(*message.Push) error {
	return func(push *message.Push) error {
		switch push.Platform {
		case "fcm":
			return fcm.Check(push)
		case "apns":
			return apns.Check(push)
		case "webpush":
			return webpush.Check(push, cfg.WebPush.AllowPrivate)
		}
		return nil
	}
}

// addPush makes the providers of push that are configured.
func (p *process) addPush(add func(pr delivery.Provider, slots int, err error, platforms ...string) error) error {
	if p.cfg.FCM.ServiceAccount != "" || p.cfg.FCM.Token != "" {
		pr, err := p.fcm()
		if err := add(pr, p.cfg.FCM.Concurrency, err, "fcm"); err != nil {
			return fmt.Errorf("fcm: %w", err)
		}
	}
	if c := p.cfg.APNs; c.Topic != "" {
		pr, err := p.apns(c)
		if err := add(pr, c.Concurrency, err, "apns"); err != nil {
			return fmt.Errorf("apns: %w", err)
		}
	}
	if c := p.cfg.WebPush; c.Subject != "" {
		pr, err := p.webpush(c)
		if err := add(pr, c.Concurrency, err, "webpush"); err != nil {
			return fmt.Errorf("webpush: %w", err)
		}
	}
	return nil
}

func (p *process) apns(c config.APNs) (*apns.Provider, error) {
	roots, err := roots(c.CA.Reveal())
	if err != nil {
		return nil, err
	}
	source := &credential.APNs{KeyID: c.KeyID, TeamID: c.TeamID}
	if err := source.Check(); err != nil {
		return nil, fmt.Errorf("apns.%w", err)
	}
	if source.Key, err = p.creds.live("apns.key", "apns.key", c.Key, credential.CheckP8(c.KeyID)); err != nil {
		return nil, err
	}
	token := p.creds.add("apns", source, nil)
	return apns.New(apns.Config{
		Options: overhttp.Options{Name: "apns", BaseURL: c.BaseURL, Concurrency: c.Concurrency, ReplyLimit: c.ReplyLimit, RootCAs: roots, Logger: p.log},
		Token:   token, Topic: c.Topic, Connections: c.Connections,
	})
}

func (p *process) webpush(c config.WebPush) (*webpush.Provider, error) {
	roots, err := roots(c.CA.Reveal())
	if err != nil {
		return nil, err
	}
	return webpush.New(webpush.Config{
		Name: "webpush", VAPIDKey: c.VAPIDKey.Reveal(), Subject: c.Subject, Concurrency: c.Concurrency, Connections: c.Connections,
		ReplyLimit: c.ReplyLimit, AllowPrivate: c.AllowPrivate, ReplaceRepeats: c.ReplaceRepeats, RootCAs: roots,
	})
}

// roots is the system's certificates and those in pem, or nil if there are none.
func roots(pem string) (*x509.CertPool, error) {
	if pem == "" {
		return nil, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM([]byte(pem)) {
		return nil, errors.New("ca: holds no certificate in PEM")
	}
	return pool, nil
}
