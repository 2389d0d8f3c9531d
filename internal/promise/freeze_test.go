//go:build linux

package promise

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/devstack/teststack"
	"github.com/stormpost/stormpost/internal/sim"
)

// SIGSTOP PostgreSQL for 20 s amid claims, and let it go on: nothing stranded,
// nothing doubled. A stopped server commits what it had begun when it goes on.
func TestFreezePostgres(t *testing.T) {
	s, pg := newStageWithPostgres(t)
	api := s.start("api").api
	s.start("worker,recovery")
	s.start("worker")
	c := newClient(t, s.key, func() string { return api })
	stop := c.flow(80, mixed("freeze"))
	for i := range teststack.Scaled(20) {
		waitAccepted(t, c, 60)
		letGo := func() {}
		if i%2 == 0 { // a claim waits for a lock, and will have waited too long
			letGo = s.heldUp("attempt", "select where false", "")
		} else { // a claim runs, and may be committed after all
			s.claiming()
		}
		if err := pg.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second) // the time is what is tested
		if err := pg.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		letGo()
	}
	stop()
	if v := s.settle(c, c.urls, 2*time.Minute); len(v.doubts) > 0 {
		t.Errorf("%d in doubt, although no worker died and every provider answered", len(v.doubts))
	}
}

// claiming waits until a claim is under way.
func (s *stage) claiming() {
	s.t.Helper()
	c := s.conn()
	defer c.Close(context.Background())
	for deadline, claims := time.Now().Add(30*time.Second), 0; claims == 0; {
		if err := c.QueryRow(s.t.Context(), `select count(*) from pg_stat_activity where state = 'active' and pid <> pg_backend_pid() and query like '%claim_batch(%'`).Scan(&claims); err != nil {
			s.t.Fatal(err)
		}
		if claims == 0 && time.Now().After(deadline) {
			s.t.Fatal("nothing is claimed")
		}
	}
}

// SIGSTOP a worker between claim and hand-over for a minute, while its doubts
// are decided: when it goes on, it gives back what it may no longer send.
func TestFreezeWorkerWhileItsDoubtsAreDecided(t *testing.T) {
	s := newStage(t)
	api := s.start("api").api
	frozen := s.start("worker")
	c := newClient(t, s.key, func() string { return api })
	stop := c.flow(60, mixed("stopped"))
	waitAccepted(t, c, 60)
	// Held up before MAIL is answered: claimed, and not handed over.
	held := make(chan struct{}, 1000)
	release := make(chan struct{})
	hold := func(sim.Event) {
		held <- struct{}{}
		<-release
	}
	if err := s.sims.SMTP.AddFault(sim.Fault{Step: sim.StepMail, Do: sim.Slow, Times: 4, Hook: hold}); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		<-held
	}
	frozen.freeze(t)
	close(release)
	stop()
	s.start("worker") // another one carries on
	resumed := make(chan struct{})
	resume := time.AfterFunc(60*time.Second, func() { frozen.signal(syscall.SIGCONT); close(resumed) })
	defer resume.Stop()
	// Decided by what the provider has, while the worker sleeps.
	decided := make(map[string]doubt)
	for deadline := time.Now().Add(50 * time.Second); time.Now().Before(deadline); {
		taken := s.taken()
		for name, d := range s.doubts(api) {
			decision := "resend"
			if taken[name] > 0 {
				decision = "sent"
			}
			s.decide(api, d, decision)
			decided[name] = d
		}
		if len(decided) > 0 && s.quiet(api) && len(s.doubts(api)) == 0 {
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	if len(decided) < 4 {
		t.Errorf("%d doubts were decided while the worker slept, want at least the 4 that were held", len(decided))
	}
	waitFor(t, resumed, "the worker to go on")
	s.until("the worker has given back what was held", time.Minute, func() bool {
		open, untaken := s.attempts(frozen)
		return open == 0 && untaken > 0
	})
	if v := s.settle(c, c.urls, time.Minute); len(v.doubts) > 0 {
		t.Errorf("%d in doubt again", len(v.doubts))
	}
}

// freeze sends SIGSTOP and returns when no thread of the process runs any more:
// the signal itself only asks for it.
func (p *process) freeze(t *testing.T) {
	t.Helper()
	p.signal(syscall.SIGSTOP)
	tasks := fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		stats, err := filepath.Glob(tasks)
		if err != nil {
			t.Fatal(err)
		}
		running := len(stats) == 0
		for _, stat := range stats { // proc(5): "pid (name) state …"
			line, err := os.ReadFile(stat)
			_, state, _ := strings.Cut(string(line), ") ")
			running = running || err != nil || !strings.HasPrefix(state, "T")
		}
		if !running {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d goes on after SIGSTOP", p.cmd.Process.Pid)
		}
	}
}

// attempts are how many a worker has in hand, and how many it has ended without
// handing them over.
func (s *stage) attempts(p *process) (open, untaken int) {
	s.t.Helper()
	_, metrics := s.text(p.metrics + "/metrics")
	for line := range strings.Lines(metrics) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		switch {
		case strings.HasPrefix(name, "stormpost_delivery_open{"):
			open += number(s.t, value)
		case strings.HasPrefix(name, "stormpost_delivery_attempts_total{") &&
			(strings.Contains(name, `outcome="returned"`) || strings.Contains(name, `outcome="deferred"`)):
			untaken += number(s.t, value)
		}
	}
	return open, untaken
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// resumeAt is a channel that is closed after d.
func resumeAt(d time.Duration) <-chan struct{} {
	c := make(chan struct{})
	time.AfterFunc(d, func() { close(c) })
	return c
}

func waitFor(t *testing.T, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(3 * time.Minute):
		t.Fatalf("waited too long for %s", what)
	}
}
