//go:build linux

package promise

import (
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/devstack/teststack"
	"github.com/stormpost/stormpost/internal/sim"
)

// Some of the answers (fewer than would slow its pace) of a provider that absorbs repeats are lost, after it
// took the message or before, while workers come and go: nobody is asked, and it
// has every message once.
func TestLostAnswersResolveThemselves(t *testing.T) {
	s := newStage(t)
	resend := []string{
		"STORMPOST_DELIVERY_EMAIL=resend", "STORMPOST_RESEND_KEY=" + sim.ResendKey, "STORMPOST_RESEND_BASE_URL=" + s.sims.Resend.URL(),
		"STORMPOST_RESEND_REPLY_LIMIT=" + replyLimit.String(), "STORMPOST_DELIVERY_SHUTDOWN_GRACE=5s",
	}
	api := s.start("api", resend...).api
	s.start("worker,recovery", resend...)
	if err := s.sims.Resend.SetFaults(
		sim.Fault{Step: sim.StepReply, Do: sim.Drop, Probability: 0.03},
		sim.Fault{Step: sim.StepReply, Do: sim.Hang, Probability: 0.005},
		sim.Fault{Step: sim.StepBody, Do: sim.Reset, Probability: 0.01},
		sim.Fault{Step: sim.StepReply, Do: sim.Garbage, Code: 502, Probability: 0.01},
	); err != nil {
		t.Fatal(err)
	}
	c := newClient(t, s.key, func() string { return api })
	stop := c.flow(60, func(i int) order { return order{Name: mixed("repeat")(i).Name} })
	for range teststack.Scaled(24) {
		w := s.start("worker", resend...)
		waitAccepted(t, c, 150)
		if err := w.stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if v := s.settle(c, c.urls, 2*time.Minute); len(v.doubts) > 0 {
		t.Errorf("%d in doubt, although every repeat is absorbed", len(v.doubts))
	}
	var repeats, messages int
	if err := s.conn().QueryRow(t.Context(), `select count(*), count(distinct n) from decision where by like 'policy:repeat@resend:%' and kind = 'resend'`).Scan(&repeats, &messages); err != nil {
		t.Fatal(err)
	}
	if messages < 10 {
		t.Errorf("%d repeats of %d messages are on record: the faults did nothing", repeats, messages)
	}
	t.Logf("%d repeats of %d messages", repeats, messages)
}
