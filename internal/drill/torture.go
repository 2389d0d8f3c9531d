package drill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/stormpost/stormpost/internal/drill/judge"
	"github.com/stormpost/stormpost/internal/sim"
)

var torture = Drill{
	Name:   "torture",
	Outage: `None in particular: what breaks at night is seldom what was rehearsed.`,
	About: `Random faults, drawn from the seed, for --minutes: processes are killed or stopped, the stores are killed,
hang, are cut off, slow or out of disk, and providers are slow, refuse, or take messages and don't say so, and
workers' clocks are turned; several at once. The load has supersede keys, lives of seconds and clients that submit again. Nothing is lost, doubled or stale, numbers
have no gaps, and only what nobody can know is in doubt.`,
	Shape: Shape{Rate: 100, Mixed: true, Linked: true, Whole: true, Faults: faultKinds, Prepare: prepareTorture},
	Run: func(ctx context.Context, s *Stage) error {
		t := &tormentor{stage: s, bit: make(map[string]int)}
		return t.run(ctx)
	},
}

// tormentor carries out what was drawn.
type tormentor struct {
	stage *Stage

	mu  sync.Mutex
	bit map[string]int // by kind: faults that bit
}

func (t *tormentor) run(ctx context.Context) error {
	s := t.stage
	span := time.Duration(s.opt.Minutes * float64(time.Minute))
	able, left := s.faults()
	s.Evidence("left_out", left)
	for kind, why := range left {
		s.Event("no %s: %s", kind, why)
	}
	plan := s.opt.plan
	if plan == nil {
		plan = draw(s.opt.Seed, span, able)
	}
	s.Evidence("faults_drawn", len(plan))
	byTarget := make(map[string][]fault)
	for _, f := range plan {
		byTarget[f.Target] = append(byTarget[f.Target], f)
	}
	start := time.Now()
	errs := make(chan error, len(byTarget))
	tctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, faults := range byTarget {
		go func() {
			var err error
			for _, f := range faults {
				if waitUntil(tctx, start.Add(f.At)) && err == nil {
					err = t.suffer(tctx, f)
				}
			}
			if err != nil {
				cancel()
			}
			errs <- err
		}()
	}
	var err error
	for range byTarget {
		err = errors.Join(err, <-errs)
	}
	if err != nil {
		return err
	}
	if err := s.Wait(ctx, time.Until(start.Add(span))); err != nil {
		return err
	}
	s.Evidence("faults_that_bit", t.bit)
	s.Bit(len(t.bit) > 0)
	s.Healed("the last fault is over: %v bit", t.bit)
	return nil
}

// suffer lives through one fault. What it did is undone also when ctx ends.
func (t *tormentor) suffer(ctx context.Context, f fault) error {
	s := t.stage
	d := s.deed(f)
	var away *harm
	switch {
	case d.away: // only the journal knows what is accepted from now on
		away = s.Harm([]string{ledgerAway}, "%s", f)
	default:
		s.hurt()
		s.Event("%s", f)
	}
	if s.victim(f) == judge.Store || strings.HasPrefix(f.Target, "api") { // a process that stood still answers too late
		s.speechless(1)
		defer s.speechless(-1)
	}
	if d.kafka {
		s.kafkaGone(time.Now().Add(f.Span + kafkaGrace))
	}
	from := time.Now()
	err := d.do(ctx)
	if err == nil {
		if away != nil {
			away.Bites()
		}
		waitUntil(ctx, time.Now().Add(f.Span))
	}
	bit := err == nil && d.bit(ctx)
	if bit {
		t.mu.Lock()
		t.bit[f.Kind]++
		t.mu.Unlock()
	}
	over := "over"
	if !bit {
		over = "over, and it changed nothing"
	}
	// Before the undoing: what a store that is back does isn't the fault's.
	if d.away {
		away.Over()
		s.Healed("%s: %s", f, over)
	} else {
		s.Event("%s: %s", f, over)
	}
	err = errors.Join(err, d.undo(context.WithoutCancel(ctx)))
	if of := s.victim(f); of != "" && f.Kind != "kill" {
		s.troubled(of, from)
	}
	if d.kafka {
		s.kafkaGone(time.Now().Add(kafkaGrace))
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("%s: %w", f, err)
	}
	return nil
}

// kafkaGrace is how long after a trouble with Kafka nothing is asked of it.
const kafkaGrace = 15 * time.Second

// hurt notes that harm was done, of no particular consequence.
func (s *Stage) hurt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.harmed {
		s.harmed, s.healed = true, time.Now()
	}
}

// speechless notes that a fault begins, 1, or has ended, -1, through which a request
// may have no answer.
func (s *Stage) speechless(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silencing += n
	s.unwell = time.Now()
}

// kafkaGone notes that Kafka may not answer until a time.
func (s *Stage) kafkaGone(until time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if until.After(s.kafkaLess) {
		s.kafkaLess = until
	}
}

// deed is how a fault is done.
type deed struct {
	do    func(context.Context) error
	bit   func(context.Context) bool // just before it is undone
	undo  func(context.Context) error
	away  bool // PostgreSQL is away meanwhile
	kafka bool // Kafka, or a part of it, may be
}

func (s *Stage) deed(f fault) deed {
	switch f.Kind {
	case "kill", "stop":
		return s.harmProcess(f)
	case "postgres":
		return s.harmPostgres(f)
	case "kafka":
		return s.harmKafka(f)
	case "network":
		return s.harmLinks(f)
	case "disk":
		return s.harmDisk()
	case "clock":
		return s.harmClock(f)
	}
	return s.harmProvider(f)
}

func yes(context.Context) bool { return true }

func nothing(context.Context) error { return nil }

func (s *Stage) server(name string) *server {
	for _, p := range append(append([]*server{}, s.apis...), s.others...) {
		if p.name == name {
			return p
		}
	}
	return nil
}

func (s *Stage) harmProcess(f fault) deed {
	p := s.server(f.Target)
	if f.Kind == "kill" {
		return deed{do: func(context.Context) error { p.kill(); return nil }, bit: yes, undo: p.start}
	}
	signal := func(sig syscall.Signal) error { return p.current().cmd.Process.Signal(sig) }
	return deed{
		do:   func(context.Context) error { return signal(syscall.SIGSTOP) },
		bit:  func(context.Context) bool { return stopped(p.current().cmd.Process.Pid) },
		undo: func(context.Context) error { return signal(syscall.SIGCONT) },
	}
}

// harmClock turns a worker's wall clock, for as long as the worker lives through
// it: the one that is started in its place has the same.
func (s *Stage) harmClock(f fault) deed {
	dir := filepath.Join(s.dir, strings.TrimPrefix(f.Target, clockOf))
	by := f.Lag
	if f.How == "is turned back" {
		by = -by
	}
	set := func(by time.Duration) func(context.Context) error {
		return func(context.Context) error {
			return os.WriteFile(filepath.Join(dir, clockFile), []byte(by.String()), 0o600)
		}
	}
	return deed{do: set(by), undo: set(0), bit: func(context.Context) bool {
		log, err := os.ReadFile(filepath.Join(dir, "log"))
		return err == nil && bytes.Contains(log, []byte(`"by":`+strconv.FormatInt(int64(by), 10)))
	}}
}

func (s *Stage) harmPostgres(f fault) deed {
	gone := func(ctx context.Context) bool { return !s.postgresUp(ctx) }
	switch f.How {
	case "killed":
		return deed{do: func(context.Context) error { return s.Postgres.Kill() }, bit: gone, undo: s.Postgres.Restart, away: true}
	case "hangs":
		signal := func(sig syscall.Signal) func(context.Context) error {
			return func(context.Context) error { return s.Postgres.Signal(sig) }
		}
		return deed{do: signal(syscall.SIGSTOP), bit: gone, undo: signal(syscall.SIGCONT), away: true}
	}
	was := s.Postgres.Pid()
	return deed{do: s.Postgres.Restart, bit: func(context.Context) bool { return s.Postgres.Pid() != was }, undo: nothing}
}

func (s *Stage) harmKafka(f fault) deed {
	i := f.Node
	switch f.How {
	case "hangs":
		return deed{
			do:   func(context.Context) error { return s.Kafka.Signal(i, syscall.SIGSTOP) },
			bit:  func(context.Context) bool { return stopped(s.Kafka.Pid(i)) },
			undo: func(context.Context) error { return s.Kafka.Signal(i, syscall.SIGCONT) }, kafka: true,
		}
	case "killed":
		return deed{
			do:   func(context.Context) error { return s.Kafka.Kill(i) },
			bit:  func(context.Context) bool { return s.Kafka.Pid(i) == 0 },
			undo: func(ctx context.Context) error { return s.Kafka.Restart(ctx, i) }, kafka: true,
		}
	}
	return deed{
		do: func(context.Context) (err error) {
			for i := range s.brokers {
				err = errors.Join(err, s.Kafka.Kill(i))
			}
			return err
		},
		bit:  func(ctx context.Context) bool { return s.kafkaUp(ctx) == 0 },
		undo: s.Kafka.RestartAll, kafka: true,
	}
}

func (s *Stage) harmLinks(f fault) deed {
	hit := []*link{s.links.postgres}
	if f.Target == "kafka" {
		if hit = s.links.kafka; f.Node >= 0 {
			hit = hit[f.Node : f.Node+1]
		}
	}
	before := int64(0)
	for _, l := range hit {
		before += l.hits.Load()
	}
	set := func(mode trouble, lag time.Duration) func(context.Context) error {
		return func(context.Context) error {
			for _, l := range hit {
				l.set(mode, lag)
			}
			return nil
		}
	}
	return deed{
		do: set(trouble(f.How), f.Lag), undo: set(passing, 0),
		bit: func(context.Context) bool {
			n := -before
			for _, l := range hit {
				n += l.hits.Load()
			}
			return n > 0
		},
		away:  f.Target == "postgres" && (f.How == string(refusing) || f.How == string(halfOpen)),
		kafka: f.Target == "kafka",
	}
}

func (s *Stage) harmProvider(f fault) deed {
	faults, email := s.sims.FCM.Faults, f.Target == "smtp"
	if email {
		faults = s.sims.SMTP.Faults
	}
	var hits atomic.Int64
	return deed{
		do: func(context.Context) error {
			var set []sim.Fault
			for _, x := range misbehave(f, email) {
				x.Hook = func(sim.Event) { hits.Add(1) }
				set = append(set, x)
			}
			return faults.SetFaults(set...)
		},
		bit:  func(context.Context) bool { return hits.Load() > 0 },
		undo: func(context.Context) error { faults.ClearFaults(); return nil },
	}
}
