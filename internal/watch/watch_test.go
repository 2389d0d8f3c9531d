package watch

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/incident"
	"github.com/stormpost/stormpost/internal/message"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	lane       = message.Lane{Class: message.Transactional, Channel: message.ChannelEmail}
	campaign   = message.Lane{Class: message.Campaign, Channel: message.ChannelEmail}
	objectives = map[message.Class]time.Duration{message.Transactional: 30 * time.Second, message.Campaign: time.Hour}
)

// facts is held by whoever reads or changes what the checks look at: the test,
// unless it lets time go by.
var facts sync.Mutex

func nap(d time.Duration) {
	facts.Unlock()
	time.Sleep(d)
	facts.Lock()
}

// within runs a watch of the checks, in a bubble whose time goes by at once.
func within(t *testing.T, checks func() []Check, do func(t *testing.T, e *incident.Engine)) {
	withinBare(t, func() []Check {
		all := checks()
		for i := range all {
			look := all[i].Look
			all[i].Look = func(ctx context.Context) ([]incident.Condition, error) {
				facts.Lock()
				defer facts.Unlock()
				return look(ctx)
			}
		}
		return all
	}, do)
}

// withinBare is within for checks that take time.
func withinBare(t *testing.T, checks func() []Check, do func(t *testing.T, e *incident.Engine)) {
	synctest.Test(t, func(t *testing.T) {
		e := incident.New(incident.Config{})
		w := New(e, slog.New(slog.NewTextHandler(t.Output(), nil)), checks()...)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); w.Run(ctx) }()
		facts.Lock()
		defer facts.Unlock()
		do(t, e)
		facts.Unlock()
		cancel()
		<-done
		facts.Lock()
	})
}

func causes(e *incident.Engine) map[string]incident.Incident {
	all := map[string]incident.Incident{}
	for _, i := range e.Open() {
		all[i.Cause] = i
	}
	return all
}

// TestStallWhileAway: with the ledger away nobody knows, so it stays.
func TestStallWhileAway(t *testing.T) {
	p := &pipe{lane: lane, depth: 5, age: time.Minute}
	away := errors.New("connection refused")
	var ping error
	within(t, func() []Check {
		return []Check{Stalls(p, objectives, time.Now), LedgerAway(func(context.Context) error { return ping }, time.Now)}
	}, func(t *testing.T, e *incident.Engine) {
		p.pass(10 * time.Second)
		p.err, ping = away, away
		p.pass(10 * time.Second)
		if all := causes(e); len(all) != 2 || all["ledger_away"].Summary == "" {
			t.Fatalf("%+v", all)
		}
		p.pass(5 * time.Minute)
		if all := causes(e); len(all) != 2 || all["ledger_away"].OldestAge < 300 {
			t.Fatalf("%+v", all)
		}
		p.err, ping, p.depth, p.age = nil, nil, 0, 0
		p.pass(20 * time.Second)
		if n := len(e.Open()); n != 0 {
			t.Errorf("not resolved: %+v", e.Open())
		}
	})
}

// TestHungCheckHidesNothing: a ledger that hangs is noticed in time, and so is
// Kafka meanwhile.
func TestHungCheckHidesNothing(t *testing.T) {
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	withinBare(t, func() []Check {
		return []Check{
			LedgerAway(hang, time.Now),
			Doubts(func(ctx context.Context) (message.DoubtsOpen, error) { return message.DoubtsOpen{}, hang(ctx) }),
			KafkaAway(func() []Kafka { return []Kafka{{Away: errors.New("refused"), For: time.Second}} }, time.Now),
		}
	}, func(t *testing.T, e *incident.Engine) {
		nap(6 * time.Second)
		if all := causes(e); all["kafka_away"].ID == "" {
			t.Errorf("after 6 s: %+v", all)
		}
		nap(4 * time.Second)
		if all := causes(e); all["ledger_away"].ID == "" {
			t.Errorf("after 10 s: %+v", all)
		}
	})
}

func TestClusterChanged(t *testing.T) {
	var k Kafka
	within(t, func() []Check { return []Check{KafkaAway(func() []Kafka { return []Kafka{k} }, time.Now)} }, func(t *testing.T, e *incident.Engine) {
		nap(time.Minute)
		if n := len(e.Open()); n != 0 {
			t.Errorf("%+v", e.Open())
		}
		k = Kafka{Changed: "another cluster", ChangedAt: time.Now()}
		nap(5 * time.Second)
		if i := causes(e)["cluster_changed"]; i.Severity != incident.Warning {
			t.Errorf("%+v", e.Open())
		}
		nap(6 * time.Minute)
		if n := len(e.Open()); n != 0 {
			t.Errorf("it isn't over: %+v", e.Open())
		}
	})
}

func TestDoubtsAndWorkers(t *testing.T) {
	doubts, workers := message.DoubtsOpen{}, 0
	within(t, func() []Check {
		return []Check{
			Doubts(func(context.Context) (message.DoubtsOpen, error) { return doubts, nil }),
			NoWorker(func(context.Context) (int, error) { return workers, nil }, time.Now),
		}
	}, func(t *testing.T, e *incident.Engine) {
		nap(4 * time.Second)
		workers = 1 // in time
		nap(time.Minute)
		if page, _ := e.List("", "", 10); len(page.Items) != 0 {
			t.Errorf("%+v", page.Items)
		}
		doubts, workers = message.DoubtsOpen{Count: 3, Oldest: time.Minute}, 0
		nap(6 * time.Second)
		all := causes(e)
		if d := all["in_doubt"]; d.Count != 3 || d.OldestAge != 60 || all["no_worker"].ID == "" {
			t.Errorf("%+v", all)
		}
		doubts, workers = message.DoubtsOpen{}, 1
		nap(15 * time.Second)
		if n := len(e.Open()); n != 0 {
			t.Errorf("not resolved: %+v", e.Open())
		}
	})
}

func TestProviders(t *testing.T) {
	h := message.ProviderHealth{Name: "smtp", Channel: message.ChannelEmail}
	run := func(d time.Duration, taken, deferred, unknown int64) {
		for range int(d / time.Second) {
			h.Taken, h.Deferred, h.Unknown = h.Taken+taken, h.Deferred+deferred, h.Unknown+unknown
			nap(time.Second)
		}
	}
	within(t, func() []Check {
		return []Check{Providers(func() []message.ProviderHealth { return []message.ProviderHealth{h} }, time.Now)}
	}, func(t *testing.T, e *incident.Engine) {
		quiet := func(what string) {
			t.Helper()
			if n := len(e.Open()); n != 0 {
				t.Fatalf("%s: %+v", what, e.Open())
			}
		}
		failing := func(what string) {
			t.Helper()
			if i := causes(e)["provider/smtp"]; i.ID == "" || i.Summary == "" {
				t.Fatalf("%s: nothing is open", what)
			}
		}
		run(2*time.Minute, 100, 10, 0)
		quiet("a tenth deferred")
		run(10*time.Second, 0, 60, 40)
		failing("nothing taken for 10 s, after a good minute")
		run(40*time.Second, 100, 0, 0)
		quiet("good again")
		run(3*time.Minute, 0, 0, 0)
		h.Deferred += leastEnded - 1
		run(10*time.Second, 0, 0, 0)
		quiet("too few to judge")
		h.Trouble, h.Since, h.Waiting = "connection refused", 3*time.Second, 4
		run(8*time.Second, 0, 0, 0)
		failing("can't be used")
		if i := causes(e)["provider/smtp"]; i.Count != 4 {
			t.Errorf("%+v", i)
		}
		h.Trouble = ""
		run(2*time.Minute, 1, 0, 0)
		quiet("can be used again")
	})
}

// TestSlowLooksAreRare: what takes long is asked less often.
func TestSlowLooksAreRare(t *testing.T) {
	looks := 0
	withinBare(t, func() []Check {
		return []Check{{Kinds: []incident.Kind{incident.Stall}, Costs: true, Look: func(context.Context) ([]incident.Condition, error) {
			looks++
			time.Sleep(time.Second)
			return nil, nil
		}}}
	}, func(t *testing.T, e *incident.Engine) { nap(time.Minute) })
	if looks > 13 {
		t.Errorf("%d looks of a second each in a minute", looks)
	}
}

// A credential in trouble is an incident that names it, critical when nothing
// works any more.
func TestCredentials(t *testing.T) {
	s := credential.Status{Name: "relay", Source: "file /run/secrets/relay", Health: credential.Working}
	within(t, func() []Check {
		return []Check{Credentials(func() []credential.Status { return []credential.Status{s} }, time.Now)}
	}, func(t *testing.T, e *incident.Engine) {
		nap(20 * time.Second)
		if n := len(e.Open()); n != 0 {
			t.Fatalf("%+v", e.Open())
		}
		for health, severity := range map[credential.Health]incident.Severity{
			credential.FellBack: incident.Warning, credential.Failing: incident.Warning, credential.ExpiringSoon: incident.Warning,
			credential.Refused: incident.Critical, credential.Missing: incident.Critical,
		} {
			s.Health, s.Trouble = health, "it is "+string(health)
			nap(8 * time.Second)
			i := causes(e)["credential/relay"]
			if i.Severity != severity || !strings.Contains(i.Summary, "credential relay (file /run/secrets/relay): it is "+string(health)) || i.Command != "stormpost credentials test relay" {
				t.Errorf("%s: %+v", health, i)
			}
			s.Health, s.Trouble = credential.Unproven, ""
			nap(10 * time.Minute)
			if n := len(e.Open()); n != 0 {
				t.Fatalf("%+v", e.Open())
			}
		}
	})
}
