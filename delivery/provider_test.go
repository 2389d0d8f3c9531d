package delivery

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// fakeProvider does what its script says; without one it takes everything.
type fakeProvider struct {
	ledger  *fakeLedger
	channel message.Channel
	send    func(ctx context.Context, env *message.Envelope, last func() error) message.Result
	reserve func(ctx context.Context) error
	window  time.Duration          // in which repeats are absorbed
	account atomic.Pointer[string] // of the slots

	reserved, held, sent atomic.Int64
}

func (p *fakeProvider) Name() string              { return "fake" }
func (p *fakeProvider) Channel() message.Channel  { return p.channel }
func (p *fakeProvider) ReplyLimit() time.Duration { return 10 * time.Minute }
func (p *fakeProvider) Capabilities() Capabilities {
	if p.window == 0 {
		return Capabilities{}
	}
	return Capabilities{Repeats: RepeatsAbsorbed, RepeatWindow: p.window}
}
func (p *fakeProvider) Close() error { return nil }

func (p *fakeProvider) Reserve(ctx context.Context) (Slot, error) {
	p.reserved.Add(1)
	if p.reserve != nil {
		if err := p.reserve(ctx); err != nil {
			return nil, err
		}
	}
	p.held.Add(1)
	return &fakeSlot{p: p}, nil
}

type fakeSlot struct {
	p    *fakeProvider
	gone bool
}

func (s *fakeSlot) Send(ctx context.Context, env *message.Envelope, last func() error) message.Result {
	if s.p.send != nil {
		return s.p.send(ctx, env, last)
	}
	return s.p.take(env, last)
}

func (s *fakeSlot) Account() string {
	if a := s.p.account.Load(); a != nil {
		return *a
	}
	return "account"
}

func (s *fakeSlot) Release() {
	if s.gone {
		panic("released twice")
	}
	s.gone = true
	s.p.held.Add(-1)
}

// take hands over and answers well.
func (p *fakeProvider) take(env *message.Envelope, last func() error) message.Result {
	if err := last(); err != nil {
		return message.Result{Outcome: message.Returned}
	}
	p.ledger.handOver(env)
	p.sent.Add(1)
	return message.Result{Outcome: message.Sent, Code: "250", Reply: "ok", Reference: "ref"}
}

// jumpClock is the system's clock, and can be set forward.
type jumpClock struct {
	read       func() Instant
	wall, mono atomic.Int64
}

func (c *jumpClock) now() Instant {
	i := c.read()
	return Instant{Wall: i.Wall.Add(time.Duration(c.wall.Load())), Mono: i.Mono + time.Duration(c.mono.Load())}
}

// running is a worker under test, with its process and provider.
type running struct {
	*Worker
	t        *testing.T
	ledger   *fakeLedger
	process  *fakeProcess
	provider *fakeProvider
	end      context.CancelFunc
	result   chan error
	finished atomic.Int64
}

// start runs a worker of l, with 8 senders a lane unless change says otherwise.
// It is stopped, and everything of it gone, when the test ends.
func start(t *testing.T, l *fakeLedger, change func(*running, *Config)) *running {
	t.Helper()
	r := &running{t: t, ledger: l, process: l.process(), result: make(chan error, 1)}
	r.provider = &fakeProvider{ledger: l, channel: message.ChannelEmail}
	cfg := Config{Ledger: r.process, Senders: make(map[message.Lane]int), Routes: map[message.Channel][]Route{
		message.ChannelEmail: {{Provider: r.provider, Slots: 16}},
		message.ChannelPush:  {{Provider: &fakeProvider{ledger: l, channel: message.ChannelPush}}},
	}}
	for _, lane := range message.Lanes() {
		cfg.Senders[lane] = 8
	}
	if change != nil {
		change(r, &cfg)
	}
	w, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.Worker = w
	var ctx context.Context
	ctx, r.end = context.WithCancel(context.Background())
	go func() { r.result <- w.Run(ctx) }()
	t.Cleanup(func() {
		r.end()
		r.Wait()
		if held := r.provider.held.Load(); held != 0 {
			t.Errorf("%d slots were not released", held)
		}
	})
	return r
}

// stop ends the worker and returns what Run did.
func (r *running) stop() error {
	r.end()
	return <-r.result
}

// offer gives the worker a record, and checks that it is finished at most once
// and not before the ledger holds what becomes of it.
func (r *running) offer(it message.Item) error {
	var done atomic.Bool
	return r.Offer(r.t.Context(), it.Position.Lane(), it, func() {
		if done.Swap(true) {
			r.t.Errorf("%s was finished twice", it.Position)
		}
		r.finished.Add(1)
		r.ledger.mu.Lock()
		defer r.ledger.mu.Unlock()
		m := r.ledger.messages[it.Position]
		if m != nil && len(m.attempts) < it.Attempt && m.waiting == 0 && len(r.ledger.parked) == 0 {
			r.t.Errorf("%s was finished before the ledger knew", it.Position)
		}
	})
}

func (r *running) mustOffer(its ...message.Item) {
	r.t.Helper()
	for _, it := range its {
		if err := r.offer(it); err != nil {
			r.t.Fatal(err)
		}
	}
}

// idle lets time pass, and everybody come to rest.
func idle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// trouble is an error that can be switched on and off.
type trouble struct{ on atomic.Bool }

var errTrouble = errors.New("trouble")

func (t *trouble) err() error {
	if t.on.Load() {
		return errTrouble
	}
	return nil
}

var (
	transactional = message.Lane{Class: message.Transactional, Channel: message.ChannelEmail}
	trigger       = message.Lane{Class: message.Trigger, Channel: message.ChannelEmail}
	campaign      = message.Lane{Class: message.Campaign, Channel: message.ChannelEmail}
	push          = message.Lane{Class: message.Transactional, Channel: message.ChannelPush}
)

// want checks where a message stands.
func (r *running) want(it message.Item, state string, attempts, handed int) {
	r.t.Helper()
	s, a, h := r.ledger.view(it.Position)
	if s != state || a != attempts || h != handed {
		r.t.Errorf("%s is %s after %d attempts and %d hand-overs; want %s, %d, %d", it.Position, s, a, h, state, attempts, handed)
	}
}
