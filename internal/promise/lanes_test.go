//go:build linux

package promise

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/stormpost/stormpost/internal/devstack/teststack"
	"github.com/stormpost/stormpost/internal/sim"
)

// submitAll submits orders, 64 at a time.
func submitAll(t *testing.T, c *client, n int, next func(i int) order) {
	t.Helper()
	var turn atomic.Int64
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for {
				i := int(turn.Add(1)) - 1
				if i >= n {
					return
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				_, err := c.submit(ctx, next(i))
				cancel()
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// A campaign backlog of 100,000: a transactional message sent meanwhile reaches
// its provider in 1 s at p99.
func TestCampaignDelaysNobody(t *testing.T) {
	s := newStage(t)
	api := s.start("api").api
	c := newClient(t, s.key, func() string { return api })
	backlog := teststack.Scaled(100_000)
	// A provider slow enough that the backlog is there all the time.
	for _, faults := range []*sim.Faults{s.sims.SMTP.Faults, s.sims.FCM.Faults} {
		step := sim.StepReply
		if err := faults.AddFault(sim.Fault{Step: step, Do: sim.Slow, Delay: 15 * time.Millisecond}); err != nil {
			t.Fatal(err)
		}
	}
	submitBatches(t, s, c, api, backlog)
	s.start("worker")
	s.draining()
	sent := make(map[string]time.Time)
	for i := range teststack.Scaled(1600) {
		o := order{Name: fmt.Sprintf("urgent-%05d", i), Push: i%2 == 1, Class: "transactional"}
		sent[o.Name] = time.Now()
		if _, err := c.submit(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	left := backlog
	var waits []time.Duration
	for deadline := time.Now().Add(time.Minute); len(waits) < len(sent); {
		watch := s.sims.Store.Watch()
		waits, left = waits[:0], backlog
		if err := s.sims.Store.All(func(m sim.Taken) error {
			if at, ok := sent[m.Subject]; ok {
				waits = append(waits, m.ReceivedAt.Sub(at))
			} else {
				left--
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d urgent messages have arrived", len(waits), len(sent))
		}
		if len(waits) < len(sent) {
			<-watch
		}
	}
	slices.Sort(waits)
	p99 := waits[len(waits)*99/100]
	t.Logf("transactional, with %d of %d campaign messages still to go: p50 %s, p99 %s, max %s", left, backlog, waits[len(waits)/2], p99, waits[len(waits)-1])
	if left <= 0 {
		t.Error("the backlog was gone before the urgent messages")
	}
	if p99 > time.Second {
		t.Errorf("p99 is %s, promised is 1 s", p99)
	}
	s.sims.SMTP.ClearFaults()
	s.sims.FCM.ClearFaults()
	if v := s.settle(c, c.urls, 5*time.Minute); len(v.doubts) > 0 {
		t.Errorf("%d in doubt", len(v.doubts))
	}
}

// An expired message is never sent, however it got late.
func TestExpiredIsNeverSent(t *testing.T) {
	s := newStage(t)
	api := s.start("api").api
	c := newClient(t, s.key, func() string { return api })
	n := teststack.Scaled(400)
	submitAll(t, c, n, func(i int) order {
		o := order{Name: fmt.Sprintf("stale-%04d", i), Push: i%2 == 1, ExpiresAt: time.Now().Add(2 * time.Second)}
		if i%4 >= 2 {
			o.Name, o.ExpiresAt = fmt.Sprintf("fresh-%04d", i), time.Time{}
		}
		return o
	})
	time.Sleep(2500 * time.Millisecond) // until they are stale, with no worker about
	s.start("worker")
	for deadline := time.Now().Add(time.Minute); !s.quiet(api); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("messages are still open")
		}
	}
	taken := s.taken()
	for i := range n {
		stale, fresh := fmt.Sprintf("stale-%04d", i), fmt.Sprintf("fresh-%04d", i)
		if i%4 < 2 && taken[stale] != 0 {
			t.Errorf("%s was sent", stale)
		}
		if i%4 >= 2 && taken[fresh] != 1 {
			t.Errorf("%s was sent %d times", fresh, taken[fresh])
		}
	}
	if got := s.count(api, "expired"); got < min(200, n/2-1) {
		t.Errorf("%d messages are expired, want about %d", got, n/2)
	}
}

func (s *stage) count(api, state string) int {
	s.t.Helper()
	var page struct{ Items []struct{ ID string } }
	s.get(api+"/v1/messages?limit=200&state="+state, &page)
	return len(page.Items)
}

// A provider that answers 4xx for a minute, then recovers: all sent, once.
func TestProviderRecovers(t *testing.T) {
	s := newStage(t)
	api := s.start("api").api
	s.start("worker")
	c := newClient(t, s.key, func() string { return api })
	sick, told := time.Minute, [2]atomic.Int64{}
	for i, f := range []struct {
		faults *sim.Faults
		fault  sim.Fault
	}{
		{s.sims.SMTP.Faults, sim.Fault{Step: sim.StepRcpt, Do: sim.Answer, Code: 451, For: sick}},
		{s.sims.FCM.Faults, sim.Fault{Step: sim.StepBody, Do: sim.Answer, Error: "QUOTA_EXCEEDED", For: sick}},
	} {
		f.fault.Hook = func(sim.Event) { told[i].Add(1) }
		if err := f.faults.AddFault(f.fault); err != nil {
			t.Fatal(err)
		}
	}
	stop := c.flow(40, mixed("sick"))
	waitFor(t, resumeAt(sick+2*time.Second), "the provider to recover")
	stop()
	if v := s.settle(c, c.urls, 2*time.Minute); len(v.doubts) > 0 {
		t.Errorf("%d in doubt, although every answer was clear", len(v.doubts))
	}
	if told[0].Load() < 10 || told[1].Load() < 10 {
		t.Errorf("%d emails and %d pushes were refused: it was not sick", told[0].Load(), told[1].Load())
	}
}

// A record that doesn't parse is parked with its reason, and its lane goes on.
func TestPoisonIsParked(t *testing.T) {
	s := newStage(t)
	api := s.start("api").api
	s.start("worker")
	c := newClient(t, s.key, func() string { return api })
	submitAll(t, c, 20, mixed("before"))
	transport := &kafka.Transport{}
	defer transport.CloseIdleConnections()
	w := &kafka.Writer{Addr: kafka.TCP(s.brokers...), Topic: s.prefix + ".transactional.email", RequiredAcks: kafka.RequireAll, BatchTimeout: time.Millisecond, Transport: transport}
	defer w.Close()
	poison := []kafka.Message{
		{Value: []byte("not a record")},
		{Key: make([]byte, 8), Value: []byte("{}"), Headers: []kafka.Header{{Key: "sp", Value: make([]byte, 29)}}},
		{Key: []byte{255, 1}, Headers: []kafka.Header{{Key: "sp", Value: []byte{9}}}},
	}
	for i, deadline := 0, time.Now().Add(30*time.Second); i < 8; { // in every partition
		switch err := w.WriteMessages(t.Context(), poison...); {
		case err == nil:
			i++
		case time.Now().After(deadline): // until then its topic is being made
			t.Fatal(err)
		}
	}
	submitAll(t, c, 40, mixed("after"))
	if v := s.settle(c, c.urls, time.Minute); len(v.doubts) > 0 {
		t.Errorf("%d in doubt", len(v.doubts))
	}
	conn := s.conn()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		var parked, reasons int
		if err := conn.QueryRow(t.Context(), `select count(*), count(distinct reason) from parked where reason <> ''`).Scan(&parked, &reasons); err != nil {
			t.Fatal(err)
		}
		if parked >= 24 && reasons >= 2 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of 24 records were parked, for %d reasons", parked, reasons)
		}
	}
}
