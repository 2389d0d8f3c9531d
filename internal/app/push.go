package app

import (
	"crypto/x509"
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
func (p *process) addPush(add func(name string, pr delivery.Provider, slots int, err error, platforms ...string) error) error {
	if p.cfg.FCM.ServiceAccount != "" || p.cfg.FCM.Token != "" {
		pr, err := p.fcm()
		if err := add(fcmName, pr, p.cfg.FCM.Concurrency, err, "fcm"); err != nil {
			return err
		}
	}
	if c := p.cfg.APNs; c.Topic != "" {
		pr, err := p.apns(c)
		if err := add("apns", pr, c.Concurrency, err, "apns"); err != nil {
			return err
		}
	}
	if c := p.cfg.WebPush; c.Subject != "" {
		pr, err := p.webpush(c)
		if err := add("webpush", pr, c.Concurrency, err, "webpush"); err != nil {
			return err
		}
	}
	return nil
}

func (p *process) apns(c config.APNs) (*apns.Provider, error) {
	roots, err := roots("apns.ca", c.CA)
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
	roots, err := roots("webpush.ca", c.CA)
	if err != nil {
		return nil, err
	}
	return webpush.New(webpush.Config{
		Name: "webpush", VAPIDKey: c.VAPIDKey.Reveal(), Subject: c.Subject, Concurrency: c.Concurrency, Connections: c.Connections,
		ReplyLimit: c.ReplyLimit, AllowPrivate: c.AllowPrivate, ReplaceRepeats: c.ReplaceRepeats, RootCAs: roots,
	})
}

// roots is the system's certificates and those of the setting, which are in PEM,
// or nil if there are none.
func roots(setting string, pem config.Secret) (*x509.CertPool, error) {
	if pem == "" {
		return nil, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM([]byte(pem.Reveal())) {
		return nil, fmt.Errorf("%s: holds no certificate in PEM", setting)
	}
	return pool, nil
}
