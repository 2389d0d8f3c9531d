package drill

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

var frontDoor = Drill{
	Name: "front-door",
	Outage: `Brevo: sign-in failed entirely and the transactional API with it, at times; customers were told to
look in their own logs for what had been queued or dropped.`,
	About: `PostgreSQL is killed, then hangs (SIGSTOP), then refuses connections for 5 minutes (less with fewer
messages), and API processes are killed and started meanwhile; then Kafka goes too. Accepting goes on: 503 only while
both are away, all ends sent, once, and whoever asks what became of a message gets the truth.`,
	Needs: Needs{Postgres: true, Kafka: true},
	Shape: Shape{Keyless: true, Rate: 200},
	Run: func(ctx context.Context, s *Stage) error {
		back := func() error { return s.Postgres.Restart(ctx) }
		signal := func(sig syscall.Signal) func() error { return func() error { return s.Postgres.Signal(sig) } }
		refuse := func(yes bool) func() error { return func() error { return s.refuse(ctx, yes) } }
		both := func() error {
			errs := []error{s.Postgres.Kill()}
			for i := range s.brokers {
				errs = append(errs, s.Kafka.Kill(i))
			}
			return errors.Join(errs...)
		}
		bit := true
		var bothFrom, bothUntil time.Time
		for _, p := range []outage{
			{"killed", s.Scaled(30*time.Second, 6*time.Second), s.Postgres.Kill, back},
			{"hung", s.Scaled(30*time.Second, 6*time.Second), signal(syscall.SIGSTOP), signal(syscall.SIGCONT)},
			{"refusing", s.Scaled(5*time.Minute, 10*time.Second), refuse(true), refuse(false)},
			{"both", s.Scaled(20*time.Second, 6*time.Second), both, func() error { return errors.Join(back(), s.Kafka.RestartAll(ctx)) }},
		} {
			// In between the backlog gets some time, as much as it may need.
			if err := s.Wait(ctx, s.Scaled(20*time.Second, 8*time.Second)); err != nil {
				return err
			}
			from := time.Now()
			away, err := s.suffer(ctx, p)
			if err != nil {
				return err
			}
			bit = bit && away
			if p.name == "both" {
				bothFrom, bothUntil = from, time.Now().Add(backGrace)
			}
		}
		s.Bit(bit)
		// A shorter outage of both may be over before either is given up.
		if s.Scaled(20*time.Second, 0) >= 15*time.Second && s.Refused(bothFrom, bothUntil) == 0 {
			s.Broke("nothing was answered 503 while both stores were away")
		}
		if err := s.At(ctx, 1); err != nil {
			return err
		}
		if n := s.load.refused.count() - s.Refused(bothFrom, bothUntil); n > 0 {
			s.Broke("requests were answered 503 in %d seconds in which a store was there", n)
		}
		return nil
	},
}

// outage is a time without PostgreSQL, or without both stores.
type outage struct {
	name     string
	span     time.Duration
	down, up func() error
}

// backGrace is how long after both stores' return a request may still be refused.
const backGrace = 20 * time.Second

// suffer lives through an outage, in the middle of which the API's processes
// are killed and started. It says whether what was to be away was.
func (s *Stage) suffer(ctx context.Context, p outage) (away bool, err error) {
	harms := []*harm{s.Harm([]string{ledgerAway}, "PostgreSQL: %s", p.name)}
	if p.name == "both" {
		harms = append(harms, s.Harm([]string{kafkaAway}, "Kafka: all nodes are killed"))
	}
	from := time.Now()
	if err := p.down(); err != nil {
		return false, err
	}
	for _, h := range harms {
		h.Bites()
	}
	err = s.Wait(ctx, p.span/2)
	for i := range s.apis {
		err = errors.Join(err, s.RestartAPI(ctx, i))
	}
	err = errors.Join(err, s.Wait(ctx, p.span/2))
	away = !s.postgresUp(ctx) && (p.name != "both" || s.kafkaUp(ctx) == 0)
	refused := s.Refused(from, time.Now())
	for _, h := range harms {
		h.Over()
	}
	if err = errors.Join(err, p.up()); err != nil {
		return false, err
	}
	s.Healed("the stores are back")
	s.Evidence(p.name+"_s", time.Since(from).Seconds())
	s.Evidence(p.name+"_refused_503_s", refused)
	if p.name != "both" && refused > 0 {
		s.Broke("PostgreSQL %s: requests were answered 503 in %d seconds, although Kafka was there", p.name, refused)
	}
	return away, nil
}

// refuse has PostgreSQL turn all connections to the ledger away, or take them
// again.
func (s *Stage) refuse(ctx context.Context, yes bool) error {
	cfg, err := pgx.ParseConfig(s.dsn)
	if err != nil {
		return err
	}
	ledger := cfg.Database
	cfg.Database = "postgres"
	c, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer c.Close(context.Background())
	allow := "true"
	if yes {
		allow = "false"
	}
	if _, err := c.Exec(ctx, "alter database "+pgx.Identifier{ledger}.Sanitize()+" with allow_connections "+allow); err != nil || !yes {
		return err
	}
	_, err = c.Exec(ctx, "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", ledger)
	return err
}
