//go:build linux

package promise

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/devstack/teststack"
	"github.com/stormpost/stormpost/internal/sim"
)

// killPoint has workers killed exactly at one point of a hand-over. Nothing of
// it is in the program: the simulators kill when they see the step, or a lock
// in the database holds the worker where it is to die.
type killPoint struct {
	name string
	kill killer
	// noDoubt: nothing can be in doubt, since nothing was claimed.
	noDoubt bool
}

// killer has one of the workers killed at a point, in its i-th turn, and returns it
// when it is dead.
type killer func(t *testing.T, s *stage, c *client, workers []*slot, i int) *slot

// onStep kills a worker when a simulator gets to a step with it: in turn with an
// email and with a push.
func onStep(smtp, fcm sim.Step) killer {
	return func(t *testing.T, s *stage, _ *client, workers []*slot, i int) *slot {
		t.Helper()
		worker := workers[i/2%2]
		victim := worker.current()
		faults, step := s.sims.SMTP.Faults, smtp
		if i%2 == 1 {
			faults, step = s.sims.FCM.Faults, fcm
		}
		dead := make(chan struct{})
		// The other worker's hand-overs go on.
		its := func(ev sim.Event) bool { return victim.owns(ev.Peer) }
		hook := func(sim.Event) {
			victim.kill()
			close(dead)
		}
		if err := faults.AddFault(sim.Fault{Step: step, Do: sim.Slow, Times: 1, Match: its, Hook: hook}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-dead:
		case <-time.After(time.Minute):
			t.Fatal("no message of the worker came to the step")
		}
		faults.ClearFaults()
		return worker
	}
}

// midData kills the worker that has an email of many MiB on its way. That is more
// than the kernel takes from it, so the final dot is not written.
func midData(t *testing.T, s *stage, c *client, workers []*slot, i int) (victim *slot) {
	t.Helper()
	large := order{Name: fmt.Sprintf("large-%06d", i), Size: 8 << 20}
	dead := make(chan struct{})
	var conn uint64
	hook := func(ev sim.Event) {
		conn = ev.Conn
		for _, w := range workers {
			if w.current().owns(ev.Peer) {
				victim = w
				w.current().kill()
			}
		}
		close(dead)
	}
	if err := s.sims.SMTP.AddFault(sim.Fault{Step: sim.StepMidData, Do: sim.Slow, Times: 1, To: large.Name, Hook: hook}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.submit(t.Context(), large); err != nil {
		t.Fatal(err)
	}
	select {
	case <-dead:
	case <-time.After(time.Minute):
		t.Fatal("the large email never came to its provider")
	}
	if victim == nil {
		t.Fatal("nobody's connection brought the large email")
	}
	t.Cleanup(func() { // when the simulator has read all that the dead one had written
		if err := s.sims.Store.All(func(m sim.Taken) error {
			if m.Subject == large.Name && m.Conn == conn {
				t.Errorf("%s was taken by the connection whose worker should have died within DATA", large.Name)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
	return victim
}

// heldUp waits until a statement waits for a lock on a table, of the process if
// it isn't empty, while a query finds nothing of what must not be under way. It goes
// on when let go.
func (s *stage) heldUp(table, not, process string) (letGo func()) {
	s.t.Helper()
	ctx := context.Background()
	conn, watch := s.conn(), s.conn()
	defer watch.Close(ctx)
	if _, err := conn.Exec(ctx, `begin; lock table `+table+` in share mode`); err != nil {
		s.t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var held bool
		if err := watch.QueryRow(ctx, `select exists (select from pg_locks l join pg_class c on c.oid = l.relation join pg_stat_activity a on a.pid = l.pid
			where not l.granted and c.relname = $1 and $2 in ('', a.application_name)) and not exists (`+not+`)`, table, process).Scan(&held); err != nil {
			s.t.Fatal(err)
		}
		if held {
			break
		}
		if time.Now().After(deadline) {
			s.t.Fatal("nothing waits for the lock, or something else is under way")
		}
	}
	return func() {
		s.t.Helper()
		if _, err := conn.Exec(ctx, `rollback`); err != nil {
			s.t.Fatal(err)
		}
		conn.Close(ctx)
	}
}

// underLock kills a worker while a statement of it waits for a lock on a
// table, and a query finds nothing of what must not be under way.
func underLock(table, not string) killer {
	return func(t *testing.T, s *stage, _ *client, workers []*slot, i int) *slot {
		t.Helper()
		worker := workers[i%2]
		ctx := context.Background()
		watch := s.conn()
		defer watch.Close(ctx)
		dead := worker.current()
		letGo := s.heldUp(table, not, dead.name)
		dead.kill()
		// What the dead worker asked for, also what PostgreSQL has yet to read, must not
		// commit after it.
		for left := 1; left > 0; {
			if err := watch.QueryRow(ctx, `select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = $1`, dead.name).Scan(&left); err != nil {
				t.Fatal(err)
			}
		}
		letGo()
		return worker
	}
}

// openAttempts are those claimed before: they would be in doubt, rightly.
const openAttempts = `select from attempt a where a.kind = 1 and not exists (select from outcome o where o.n = a.n and o.no = a.no)`

// kill -9 of a worker at each point of a hand-over, over a running flow of
// email and push: nothing lost, nothing doubled, and in doubt only what was
// claimed and has no outcome.
func TestKillWorkers(t *testing.T) {
	for _, p := range []killPoint{
		{name: "before the attempt row", kill: underLock("attempt", openAttempts), noDoubt: true},
		{name: "after the attempt row", kill: onStep(sim.StepMail, sim.StepHeaders)},
		{name: "in the middle of DATA", kill: midData},
		{name: "after the final dot, before the reply", kill: onStep(sim.StepReply, sim.StepReply)},
		{name: "after the reply, before the record", kill: underLock("outcome", "select where false")},
	} {
		t.Run(p.name, func(t *testing.T) {
			s := newStage(t)
			api := s.start("api").api
			workers := []*slot{s.slot("worker"), s.slot("worker")}
			c := newClient(t, s.key, func() string { return api })
			stop := c.flow(60, mixed("kill"))
			var killed []int
			for i := range teststack.Scaled(40) {
				w := p.kill(t, s, c, workers, i)
				killed = append(killed, w.current().cmd.Process.Pid)
				w.restart(t)
			}
			stop()
			v := s.settle(c, c.urls, 2*time.Minute)
			if p.noDoubt && len(v.doubts) > 0 {
				t.Errorf("%d in doubt, although nothing was claimed when the workers died", len(v.doubts))
			}
			s.onlyOpenClaims(v, killed)
		})
	}
}

// onlyOpenClaims checks that each message in doubt was claimed by one of the
// processes that were killed, and that its attempt had no outcome.
func (s *stage) onlyOpenClaims(v verdict, killed []int) {
	s.t.Helper()
	c := s.conn()
	for name, d := range v.doubts {
		var open bool
		if err := c.QueryRow(s.t.Context(), `
			select exists (select from attempt a join message m on m.n = a.n join process p on p.id = a.worker
				left join outcome o on o.n = a.n and o.no = a.no
				where m.recipient in ($1, $2) and a.kind = 1 and (o.kind is null or o.kind = 4) and substring(p.name from '[0-9]+$')::int = any ($3))`,
			name+"@example.net", "device-token-"+name, killed).Scan(&open); err != nil {
			s.t.Fatal(err)
		}
		if !open {
			s.t.Errorf("%s (%s) was in doubt, although no worker that was killed had a claim of it without an outcome", name, d.Cause)
		}
	}
}

// kill -9 of API processes between commit and publish, and of Kafka: every
// message that was answered 202 is sent, once.
func TestKillBetweenCommitAndPublish(t *testing.T) {
	s, kafka := newStageWithKafka(t)
	apis := []*slot{s.slot("api"), s.slot("api")}
	s.start("worker")
	var turn int
	var mu sync.Mutex
	c := newClient(t, s.key, func() string {
		mu.Lock()
		defer mu.Unlock()
		turn++
		return apis[turn%2].current().api
	})
	stop := c.flow(80, mixed("publish"))
	kills, freezes := teststack.Scaled(40), teststack.Scaled(16)
	for i := range kills + freezes {
		// With Kafka gone, or hanging, whatever is accepted is unpublished: killing
		// the API now loses all that it has buffered.
		away, back := kafka.Kill, func(n int) error {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			return kafka.Restart(ctx, n)
		}
		if i >= kills {
			away = func(n int) error { return kafka.Signal(n, syscall.SIGSTOP) }
			back = func(n int) error { return kafka.Signal(n, syscall.SIGCONT) }
		}
		if err := away(0); err != nil {
			t.Fatal(err)
		}
		waitAccepted(t, c, 30)
		apis[i%2].current().kill()
		if err := back(0); err != nil {
			t.Fatal(err)
		}
		apis[i%2].restart(t)
	}
	stop()
	if v := s.settle(c, c.urls, 2*time.Minute); len(v.doubts) > 0 {
		t.Errorf("%d in doubt, although no worker died", len(v.doubts))
	}
}

// waitAccepted waits until n more messages were accepted.
func waitAccepted(t *testing.T, c *client, n int64) {
	t.Helper()
	want := c.count.Load() + n
	for deadline := time.Now().Add(30 * time.Second); c.count.Load() < want; {
		if time.Now().After(deadline) {
			t.Fatal("accepting has stopped")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// SIGTERM under load, of workers, of the API and of processes that are all of it,
// in turns: no doubts, nothing lost, nothing doubled.
func TestRollingRestartLeavesNoDoubt(t *testing.T) {
	s := newStage(t)
	all := s.slot("api,worker,recovery,watch")
	apis := []*slot{s.slot("api"), s.slot("api"), all}
	turns := []*slot{apis[0], s.slot("worker"), all, apis[1], s.slot("worker")}
	var turn atomic.Int64
	c := newClient(t, s.key, func() string { return apis[int(turn.Add(1))%len(apis)].current().api })
	stop := c.flow(150, mixed("term"))
	for i := range teststack.Scaled(40) {
		next := turns[i%len(turns)]
		waitAccepted(t, c, 50)
		ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
		err := next.current().stop(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		next.restart(t)
	}
	stop()
	if v := s.settle(c, c.urls, time.Minute); len(v.doubts) > 0 {
		t.Errorf("%d in doubt after SIGTERM", len(v.doubts))
	}
}

// Workers joining and leaving every 2 s for a minute under load: nothing
// doubled, nothing lost, and no lane stops for more than 10 s.
func TestWorkersJoinAndLeave(t *testing.T) {
	s := newStage(t)
	api := s.start("api").api
	s.start("worker") // one stays
	c := newClient(t, s.key, func() string { return api })
	classes := []string{"transactional", "trigger", "campaign"}
	stop := c.flow(120, func(i int) order {
		class := classes[i/2%3]
		return order{Name: fmt.Sprintf("churn-%s-%06d", class, i), Push: i%2 == 1, Class: class, Stream: fmt.Sprint("stream-", i%5)}
	})
	pauses := s.longestPause(func(m sim.Taken) string { return strings.Split(m.Subject, "-")[1] + "." + m.Channel })
	coming := s.slot("worker")
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); {
		time.Sleep(2 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
		err := coming.current().stop(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		coming.restart(t)
	}
	longest := pauses()
	stop()
	if v := s.settle(c, c.urls, time.Minute); len(v.doubts) > 0 {
		t.Errorf("%d in doubt, although every worker stopped in order", len(v.doubts))
	}
	if len(longest) != 6 {
		t.Errorf("%d lanes were seen", len(longest))
	}
	for lane, pause := range longest {
		t.Logf("%s: longest pause %s", lane, pause.Round(time.Millisecond))
		if pause > 10*time.Second {
			t.Errorf("%s stopped for %s", lane, pause)
		}
	}
}

// longestPause measures, by lane, the longest time in which a provider got
// nothing, until the function that it returns is called.
func (s *stage) longestPause(lane func(sim.Taken) string) func() map[string]time.Duration {
	from := time.Now()
	return func() map[string]time.Duration {
		s.t.Helper()
		until := time.Now()
		last, longest := make(map[string]time.Time), make(map[string]time.Duration)
		if err := s.sims.Store.All(func(m sim.Taken) error {
			if !m.ReceivedAt.After(from) || !m.ReceivedAt.Before(until) {
				return nil
			}
			l := lane(m)
			if last[l].IsZero() {
				last[l] = from
			}
			longest[l] = max(longest[l], m.ReceivedAt.Sub(last[l]))
			last[l] = m.ReceivedAt
			return nil
		}); err != nil {
			s.t.Fatal(err)
		}
		for l, at := range last {
			longest[l] = max(longest[l], until.Sub(at))
		}
		return longest
	}
}
