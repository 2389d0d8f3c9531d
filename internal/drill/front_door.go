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
			away, err := s.suffer(ctx, p)
			if err != nil {
				return err
			}
			bit = bit && away
		}
		s.Bit(bit)
		return s.At(ctx, 1)
	},
}

// outage is a time without PostgreSQL, or without both stores.
type outage struct {
	name     string
	span     time.Duration
	down, up func() error
}

// suffer lives through an outage, in the middle of which the API's processes
// are killed and started. It says whether PostgreSQL was away.
func (s *Stage) suffer(ctx context.Context, p outage) (away bool, err error) {
	s.Harm("PostgreSQL: %s", p.name)
	from := time.Now()
	if err := p.down(); err != nil {
		return false, err
	}
	err = s.Wait(ctx, p.span/2)
	for i := range s.apis {
		err = errors.Join(err, s.RestartAPI(ctx, i))
	}
	err = errors.Join(err, s.Wait(ctx, p.span/2))
	away = !s.postgresUp(ctx)
	refused := s.Refused(from, time.Now())
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
