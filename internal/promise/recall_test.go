//go:build linux

package promise

import (
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/broker"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/sim"
)

// A worker whose ledger is away tells Kafka what its provider answered, and is
// killed: none of it is in doubt once recovery has read that, and all is sent once.
func TestOutcomesToldToKafkaAloneCount(t *testing.T) {
	s := newStage(t)
	front, dsn := newProxy(t, s.dsn)
	api := s.start("api").api
	worker := s.start("worker", "STORMPOST_DSN="+dsn)
	c := newClient(t, s.key, func() string { return api })
	const total = 8 // less than the provider is given at once
	held, release := make(chan struct{}, total), make(chan struct{})
	if err := s.sims.SMTP.AddFault(sim.Fault{Step: sim.StepReply, Do: sim.Slow, Times: total, Hook: func(sim.Event) {
		held <- struct{}{}
		<-release
	}}); err != nil {
		t.Fatal(err)
	}
	for i := range total {
		o := mixed("told")(i)
		o.Push = false
		if _, err := c.submit(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	for range total {
		<-held
	}
	front.set(refuse)
	close(release)
	kafka, err := broker.New(broker.Config{Brokers: s.brokers, Prefix: s.prefix})
	if err != nil {
		t.Fatal(err)
	}
	s.until("the outcomes are with Kafka", time.Minute, func() bool {
		n := 0
		if err := kafka.ReadTrail(t.Context(), time.Now().Add(-time.Hour), func(step message.Step) error {
			if step.Kind == message.StepKind(message.Sent) {
				n++
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return n == total
	})
	worker.kill()
	s.start("worker,recovery")
	s.until("nothing is open", 2*time.Minute, func() bool { return s.quiet(api) && len(s.doubts(api)) == 0 })
	if v := s.settle(c, c.urls, time.Minute); len(v.doubts) > 0 {
		t.Errorf("%d in doubt, although Kafka knew", len(v.doubts))
	}
}
