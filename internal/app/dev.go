package app

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/internal/atomicfile"
	"github.com/stormpost/stormpost/internal/config"
	"github.com/stormpost/stormpost/internal/devstack"
	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/sim"
)

// DevOptions are the flags of `stormpost dev`.
type DevOptions struct {
	Data    string // the folder that holds all of its state
	Listen  string // host:port of the API
	Inbox   string // host:port of the inbox; empty: a free port
	SMTP    string // host:port of another SMTP server than the simulator
	Email   string // which simulator takes email: smtp, ses or resend; default smtp
	FCM     string // base URL of another FCM than the simulator
	DSN     string // another PostgreSQL than its own
	Brokers []string
	Version string
	Output  io.Writer          // for logs
	Ready   func(DevAddresses) // called once everything answers
}

// DevAddresses is what DIR/dev.json says, once all is ready.
type DevAddresses struct {
	API         string `json:"api"` // base URLs, without /v1 or a trailing slash
	APIKey      string `json:"api_key"`
	OperatorKey string `json:"operator_key"`
	Inbox       string `json:"inbox"`
	// Subscription is a simulated browser's, for pushes of platform webpush.
	Subscription sim.Subscription `json:"subscription"`
	Metrics      string           `json:"metrics"`
	DSN          string           `json:"dsn"`
	Brokers      []string         `json:"brokers"`
	PID          int              `json:"pid"`
}

// The keys of dev's tenant are kept beside its stores, so that they stay the
// same for as long as the folder does.
type devKeys struct {
	APIKey      string `json:"api_key"`
	OperatorKey string `json:"operator_key"`
}

// From the end of its context on, dev takes less than 10 s, whichever store or
// provider hangs: what is left of them after serveLimit and storesLimit is for
// PostgreSQL to be stopped at once, which takes two at most and loses nothing.
const (
	serveLimit  = 6 * time.Second
	storesLimit = 7500 * time.Millisecond
)

// Dev runs all of Stormpost on this machine until ctx ends: PostgreSQL as a
// child process, a Kafka-protocol broker and the providers' simulators inside
// this one, and a process with every role on top.
func Dev(ctx context.Context, opt DevOptions) (err error) {
	if err := os.MkdirAll(opt.Data, 0o700); err != nil {
		return fmt.Errorf("--data: %w", err)
	}
	if opt.Data, err = filepath.Abs(opt.Data); err != nil {
		return fmt.Errorf("--data: %w", err)
	}
	unlock, err := devstack.LockFolder(opt.Data)
	if err != nil {
		return fmt.Errorf("--data: %w", err)
	}
	defer unlock()
	file := filepath.Join(opt.Data, "dev.json")
	log := slog.New(slog.NewTextHandler(opt.Output, &slog.HandlerOptions{Level: slog.LevelWarn}))
	d := &dev{opt: opt, log: log}
	defer func() { err = errors.Join(err, d.stop()) }()
	cfg, err := d.start(ctx)
	if err != nil {
		return err
	}
	defer os.Remove(file)
	return d.serve(ctx, cfg, Options{Version: opt.Version, Output: opt.Output, Ready: func(a Addresses) {
		d.addr.API, d.addr.Metrics, d.addr.PID = a.API, a.Metrics, os.Getpid()
		if err := writeJSON(file, d.addr); err != nil {
			log.Error("dev.json could not be written", "error", err)
			return
		}
		if opt.Ready != nil {
			opt.Ready(d.addr)
		}
	}})
}

// serve is Serve, for serveLimit after ctx's end. What it leaves then dies with the
// process, as by kill -9.
func (d *dev) serve(ctx context.Context, cfg config.Config, opt Options) error {
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, cfg, opt) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
		d.asked = time.Now()
	}
	timer := time.NewTimer(serveLimit)
	defer timer.Stop()
	select {
	case err := <-served:
		return err
	case <-timer.C:
		return fmt.Errorf("not stopped in order within %s: what is under way goes on with the next start", serveLimit)
	}
}

type dev struct {
	opt      DevOptions
	log      *slog.Logger
	addr     DevAddresses
	postgres *devstack.Postgres
	broker   *devstack.Broker
	sims     *sim.Sims
	asked    time.Time // to stop; zero: nobody asked
}

// start starts what a process needs, and makes its configuration.
func (d *dev) start(ctx context.Context) (config.Config, error) {
	cfg := config.Default()
	if err := d.startStores(ctx); err != nil {
		return cfg, err
	}
	err := os.Remove(filepath.Join(d.opt.Data, "dev.json"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return cfg, err
	}
	d.sims, err = sim.StartAll(ctx, sim.Config{Dir: filepath.Join(d.opt.Data, "inbox"), InboxAddr: d.opt.Inbox, Log: d.log})
	if err != nil {
		return cfg, err
	}
	d.addr.Inbox = d.sims.InboxURL
	if _, err := dedupe.Migrate(ctx, d.addr.DSN); err != nil {
		return cfg, err
	}
	if err := d.ensureKeys(ctx); err != nil {
		return cfg, err
	}
	account, err := os.ReadFile(d.sims.ServiceAccountFile)
	if err != nil {
		return cfg, err
	}
	cfg.Listen, cfg.MetricsListen = d.opt.Listen, "127.0.0.1:0"
	cfg.DSN, cfg.Brokers, cfg.DataDir = config.Secret(d.addr.DSN), d.addr.Brokers, d.opt.Data
	cfg.Log = config.Log{Level: "warn", Format: "text"}
	cfg.SMTP.Addr = d.sims.SMTP.Addr()
	if d.opt.SMTP != "" {
		cfg.SMTP.Addr = d.opt.SMTP
	}
	switch d.opt.Email {
	case "ses":
		cfg.SES.Region, cfg.SES.Key, cfg.SES.BaseURL = sim.SESRegion, config.Live(sim.SESKeyID+":"+sim.SESSecret), d.sims.SES.URL()
		cfg.Delivery.Email = []string{"ses"}
	case "resend":
		cfg.Resend.Key, cfg.Resend.BaseURL = sim.ResendKey, d.sims.Resend.URL()
		cfg.Delivery.Email = []string{"resend"}
	case "postmark":
		cfg.Postmark.Key, cfg.Postmark.BaseURL = sim.PostmarkKey, d.sims.Postmark.URL()
		cfg.Delivery.Email = []string{"postmark"}
	case "sendgrid":
		cfg.SendGrid.Key, cfg.SendGrid.BaseURL = sim.SendGridKey, d.sims.SendGrid.URL()
		cfg.Delivery.Email = []string{"sendgrid"}
	}
	cfg.FCM.ServiceAccount, cfg.FCM.BaseURL = config.Live(account), d.sims.FCM.URL()
	if d.opt.FCM != "" {
		cfg.FCM.BaseURL = d.opt.FCM
	}
	if err := d.usePushSims(&cfg); err != nil {
		return cfg, err
	}
	cfg.Delivery.ShutdownGrace = 3 * time.Second
	return cfg, nil
}

// usePushSims sends pushes of APNs and Web Push to the simulators.
func (d *dev) usePushSims(cfg *config.Config) error {
	apple, web := d.sims.APNS, d.sims.Web
	cfg.APNs.Topic, cfg.APNs.Key = apple.Topic(), config.Live(apple.Key())
	cfg.APNs.KeyID, cfg.APNs.TeamID = sim.APNSKeyID, sim.APNSTeamID
	cfg.APNs.BaseURL, cfg.APNs.CA = apple.URL(), config.Secret(apple.CA())
	key, err := sim.NewES256Key()
	if err != nil {
		return err
	}
	cfg.WebPush.Subject, cfg.WebPush.VAPIDKey = "mailto:dev@stormpost.example", config.Secret(key)
	cfg.WebPush.AllowPrivate, cfg.WebPush.CA = true, config.Secret(web.CA())
	d.addr.Subscription = web.Subscribe("browser")
	return nil
}

func (d *dev) startStores(ctx context.Context) (err error) {
	d.addr.DSN, d.addr.Brokers = d.opt.DSN, d.opt.Brokers
	if d.addr.DSN == "" {
		d.postgres, err = devstack.StartPostgres(ctx, devstack.PostgresConfig{Dir: filepath.Join(d.opt.Data, "postgres"), Fetch: true, Logger: d.log})
		if err != nil {
			return err
		}
		d.addr.DSN = d.postgres.DSN()
	}
	if len(d.addr.Brokers) == 0 {
		d.broker, err = devstack.StartBroker(devstack.BrokerConfig{Dir: filepath.Join(d.opt.Data, "kafka"), Logger: d.log})
		if err != nil {
			return err
		}
		d.addr.Brokers = []string{d.broker.Addr()}
	}
	return nil
}

// ensureKeys makes dev's tenant, and its keys unless the ledger has them.
func (d *dev) ensureKeys(ctx context.Context) error {
	l, err := dedupe.Open(dedupe.Config{DSN: d.addr.DSN})
	if err != nil {
		return err
	}
	defer l.Close()
	file := filepath.Join(d.opt.Data, "dev-keys.json")
	var keys devKeys
	if b, err := os.ReadFile(file); err == nil {
		if err := json.Unmarshal(b, &keys); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	known, err := l.Keys(ctx)
	if err != nil {
		return err
	}
	has := func(text string) bool {
		for _, r := range known {
			if !r.Revoked && r.Hash == sha256.Sum256([]byte(text)) {
				return true
			}
		}
		return false
	}
	if has(keys.APIKey) && has(keys.OperatorKey) {
		d.addr.APIKey, d.addr.OperatorKey = keys.APIKey, keys.OperatorKey
		return nil
	}
	if keys.APIKey, _, err = CreateKey(ctx, l, "dev", []string{"*"}, []keyring.Scope{keyring.Send, keyring.Read}, false); err != nil {
		return err
	}
	if keys.OperatorKey, _, err = CreateKey(ctx, l, "dev", nil, []keyring.Scope{keyring.Send, keyring.Read, keyring.Operator}, false); err != nil {
		return err
	}
	d.addr.APIKey, d.addr.OperatorKey = keys.APIKey, keys.OperatorKey
	return writeJSON(file, keys)
}

// stop ends what start started, in reverse.
func (d *dev) stop() error {
	var errs []error
	if d.sims != nil {
		errs = append(errs, d.sims.Close())
	}
	if d.broker != nil {
		d.broker.Close()
	}
	if d.postgres != nil {
		limit := 5 * time.Second
		if !d.asked.IsZero() {
			limit = time.Until(d.asked.Add(storesLimit))
		}
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		errs = append(errs, d.postgres.Stop(ctx))
	}
	return errors.Join(errs...)
}

// writeJSON renames a complete file into place, for its owner's eyes only.
func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(path, append(b, '\n'))
}
