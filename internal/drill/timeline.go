package drill

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const tickEvery = time.Second

// watch puts a line into the timeline every second until ctx ends.
func (s *Stage) watch(ctx context.Context) {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		t := s.tick()
		var wg sync.WaitGroup
		wg.Go(func() { t.Postgres = s.postgresUp(ctx) })
		wg.Go(func() { t.Kafka = s.kafkaUp(ctx) })
		wg.Go(func() { t.Incidents = s.incidents(ctx) })
		wg.Wait()
		if ctx.Err() != nil {
			return
		}
		s.observe(t)
		s.note(t)
	}
}

// observe sees whether the stores are well, and what harm left is done with.
func (s *Stage) observe(t Tick) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.Kafka < len(s.brokers) && time.Now().After(s.kafkaLess) {
		s.kafkaLess = time.Now()
	}
	if t.Kafka < len(s.brokers) || !t.Postgres {
		s.unwell = time.Now()
	}
	if s.result.RecoverS == nil && !s.healed.IsZero() && t.Backlog <= 2*s.opt.Rate && t.Unhappy <= s.opt.Rate {
		s.result.RecoverS = seconds(time.Since(s.healed))
	}
}

// tick is the counts of now.
func (s *Stage) tick() Tick {
	t := Tick{Offered: int(s.load.offered.Load()), Sent: s.sims.Store.Count(), Accepted: int(s.load.accepted.Load()), Unhappy: int(s.load.unanswered.Load())}
	t.Backlog = max(0, t.Accepted-t.Sent)
	if !s.start.IsZero() {
		t.T = float64(time.Since(s.start).Milliseconds()) / 1000
	}
	return t
}

func (s *Stage) note(t Tick) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.result.Timeline = append(s.result.Timeline, t)
	fmt.Fprintln(s.opt.Progress, t)
}

func (s *Stage) postgresUp(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	c, err := pgx.Connect(ctx, s.dsn)
	if err != nil {
		return false
	}
	defer c.Close(ctx)
	return c.Ping(ctx) == nil
}

// kafkaUp counts the nodes that take a connection.
func (s *Stage) kafkaUp(ctx context.Context) (n int) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for _, b := range s.brokers {
		if c, err := new(net.Dialer).DialContext(ctx, "tcp", b); err == nil {
			c.Close()
			n++
		}
	}
	return n
}
