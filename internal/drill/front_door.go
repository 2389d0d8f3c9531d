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
	About: `PostgreSQL is killed, then hangs (SIGSTOP), then refuses connections, API processes are killed and
started meanwhile; then Kafka goes too. Accepting goes on: 503 only while both are away, and all ends sent, once.`,
	Needs: Needs{Postgres: true, Kafka: true},
	Run: func(ctx context.Context, s *Stage) error {
		bit := true
		phase := func(at, span float64, name string, down, up func() error) error {
			if err := s.At(ctx, at); err != nil {
				return err
			}
			s.Harm("PostgreSQL: %s", name)
			from := time.Now()
			if err := down(); err != nil {
				return err
			}
			half := s.Span(span, 6*time.Second) / 2
			err := s.Wait(ctx, half)
			for i := range s.apis {
				err = errors.Join(err, s.RestartAPI(ctx, i))
			}
			err = errors.Join(err, s.Wait(ctx, half))
			bit = bit && !s.postgresUp(ctx)
			refused := s.Refused(from, time.Now())
			if err = errors.Join(err, up()); err != nil {
				return err
			}
			s.Healed("PostgreSQL is back")
			s.Evidence(name+"_s", time.Since(from).Seconds())
			s.Evidence(name+"_refused_503_s", refused)
			if name != "both" && refused > 0 {
				s.Broke("PostgreSQL %s: requests were answered 503 in %d seconds, although Kafka was there", name, refused)
			}
			return nil
		}
		back := func() error { return s.Postgres.Restart(ctx) }
		if err := phase(0.1, 0.1, "killed", s.Postgres.Kill, back); err != nil {
			return err
		}
		if err := phase(0.3, 0.1, "hung", func() error { return s.Postgres.Signal(syscall.SIGSTOP) }, func() error { return s.Postgres.Signal(syscall.SIGCONT) }); err != nil {
			return err
		}
		if err := phase(0.5, 0.2, "refusing", func() error { return s.refuse(ctx, true) }, func() error { return s.refuse(ctx, false) }); err != nil {
			return err
		}
		err := phase(0.8, 0.1, "both", func() error {
			errs := []error{s.Postgres.Kill()}
			for i := range s.brokers {
				errs = append(errs, s.Kafka.Kill(i))
			}
			return errors.Join(errs...)
		}, func() error { return errors.Join(back(), s.Kafka.RestartAll(ctx)) })
		s.Bit(bit)
		if err != nil {
			return err
		}
		return s.At(ctx, 1)
	},
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
