package delivery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// fakeLedger keeps the rules of the ledger in memory, and the account of what
// providers were handed: that one is the truth.
type fakeLedger struct {
	t  testing.TB
	mu sync.Mutex

	messages map[message.Position]*fakeMessage
	next     int64
	parked   []string
	open     int // claimed, without an outcome
	most     int // the most that were ever open
}

type fakeMessage struct {
	item     message.Item
	accepted time.Time
	expires  time.Time
	test     bool
	lost     bool // the content
	attempts []*fakeAttempt
	waiting  int // the attempt that may be made from due on
	due      time.Time
	aside    int    // how often it was postponed
	handed   []int  // attempts that a provider took over, in order
	basis    string // of the last decision to resend
}

type fakeAttempt struct {
	kind    string // send, expire, hold
	by      *fakeProcess
	at      time.Time
	reason  string
	outcome message.Outcome
	report  message.Report
}

func newLedger(t testing.TB) *fakeLedger {
	return &fakeLedger{t: t, messages: make(map[message.Position]*fakeMessage)}
}

// accept takes a message for lane that lives for life.
func (l *fakeLedger) accept(lane message.Lane, life time.Duration) message.Item {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	c := &message.Content{}
	if lane.Channel == message.ChannelEmail {
		c.Email = &message.Email{From: "shop@example.com", To: []string{"a@example.net"}, Subject: "Hello", Text: "It is on its way."}
	} else {
		c.Push = &message.Push{Platform: "fcm", To: message.Target{Token: "token"}, Data: map[string]string{"k": "v"}}
	}
	now := time.Now()
	c.Options().Class = lane.Class.String()
	c.Options().ExpiresAt = now.Add(life)
	raw, err := c.Encode()
	if err != nil {
		l.t.Fatal(err)
	}
	id := message.SubmissionID(message.HashKey(1, fmt.Sprint(l.next)), message.FingerprintOf(raw)).Message(0)
	it := message.Item{Position: message.PositionOf(lane, l.next, 0), ID: id, Attempt: 1, Content: raw}
	l.messages[it.Position] = &fakeMessage{item: it, accepted: now, expires: now.Add(life)}
	return it
}

// replace gives a message other content, as if it had been accepted with it.
func (l *fakeLedger) replace(it message.Item, raw []byte) message.Item {
	l.mu.Lock()
	defer l.mu.Unlock()
	it.Content = raw
	it.ID = message.SubmissionID(it.ID.KeyHash(), message.FingerprintOf(raw)).Message(0)
	l.messages[it.Position].item = it
	return it
}

// process is the ledger as one worker process has it, until it is killed.
func (l *fakeLedger) process() *fakeProcess {
	return &fakeProcess{ledger: l, dead: make(chan struct{}), fault: func(string) error { return nil }}
}

// handOver is called by providers when they take a message.
func (l *fakeLedger) handOver(env *message.Envelope) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.messages[env.Position]
	if m == nil {
		l.t.Errorf("%s: handed over, and unknown", env.Position)
		return
	}
	m.handed = append(m.handed, env.Attempt)
	a := m.attempts[env.Attempt-1]
	if a.kind != "send" || a.outcome != 0 {
		l.t.Errorf("%s: attempt %d was handed over as %s, outcome %s", env.Position, env.Attempt, a.kind, a.outcome)
	}
	if slices.Index(m.handed, env.Attempt) != len(m.handed)-1 {
		l.t.Errorf("%s: attempt %d was handed over twice", env.Position, env.Attempt)
	}
	if !time.Now().Before(m.expires) {
		l.t.Errorf("%s: sent after its life", env.Position)
	}
}

// view says where a message stands: queued, waiting, open, sent, …
func (l *fakeLedger) view(p message.Position) (state string, attempts, handed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.messages[p]
	attempts, handed = len(m.attempts), len(m.handed)
	switch {
	case m.waiting > 0:
		return "waiting", attempts, handed
	case attempts == 0:
		return "queued", attempts, handed
	}
	last := m.attempts[attempts-1]
	switch {
	case last.kind != "send":
		return last.kind, attempts, handed
	case last.outcome == 0:
		return "open", attempts, handed
	}
	return last.outcome.String(), attempts, handed
}

func (l *fakeLedger) last(p message.Position) *fakeAttempt {
	l.mu.Lock()
	defer l.mu.Unlock()
	as := l.messages[p].attempts
	return as[len(as)-1]
}

// states counts the messages by state.
func (l *fakeLedger) states() map[string]int {
	l.mu.Lock()
	var all []message.Position
	for p := range l.messages {
		all = append(all, p)
	}
	l.mu.Unlock()
	n := make(map[string]int)
	for _, p := range all {
		s, _, _ := l.view(p)
		n[s]++
	}
	return n
}

// fakeProcess is a worker's connection to the ledger.
type fakeProcess struct {
	ledger *fakeLedger
	once   sync.Once
	dead   chan struct{}
	fault  func(op string) error // asked before each operation
	claims atomic.Int64
	beats  atomic.Int64
	beaten atomic.Pointer[[]message.AttemptKey] // what the last heartbeat listed
	giveUp atomic.Int64
}

var errKilled = errors.New("killed")

// kill ends everything that the process could still do.
func (p *fakeProcess) kill() { p.once.Do(func() { close(p.dead) }) }

func (p *fakeProcess) begin(op string) error {
	select {
	case <-p.dead:
		return errKilled
	default:
		return p.fault(op)
	}
}

func (p *fakeProcess) Claim(ctx context.Context, it message.Item) (message.Claim, error) {
	if err := cmp.Or(ctx.Err(), p.begin("claim")); err != nil {
		return message.Claim{}, err
	}
	l := p.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	p.claims.Add(1)
	now := time.Now()
	m := l.messages[it.Position]
	switch {
	case m == nil || m.item.ID != it.ID:
		return message.Claim{Verdict: message.Stranger}, nil
	case it.Attempt <= len(m.attempts):
		return message.Claim{Verdict: message.Taken}, nil
	case m.waiting == 0 && (it.Attempt != 1 || len(m.attempts) > 0), m.waiting > 0 && m.waiting != it.Attempt:
		return message.Claim{Verdict: message.TooEarly}, nil
	case m.waiting > 0 && now.Before(m.due) && now.Before(m.expires):
		return message.Claim{Verdict: message.NotDue}, nil
	}
	m.waiting = 0
	a := &fakeAttempt{kind: "send", by: p, at: now}
	m.attempts = append(m.attempts, a)
	if !now.Before(m.expires) {
		a.kind = "expire"
		return message.Claim{Verdict: message.Expired}, nil
	}
	l.open++
	l.most = max(l.most, l.open)
	return message.Claim{
		Verdict: message.Claimed, Tenant: 1, Recipient: "a@example.net", Test: m.test, ExpiresAt: m.expires, Life: m.expires.Sub(now),
		Basis: m.basis, FirstAge: now.Sub(m.attempts[0].at),
	}, nil
}

// end is what Record and Hold have in common: the attempt is open and p's.
func (p *fakeProcess) end(k message.AttemptKey, o message.Outcome) (*fakeMessage, *fakeAttempt) {
	m := p.ledger.messages[k.Position]
	a := m.attempts[k.Attempt-1]
	if a.by != p || a.kind != "send" || a.outcome != 0 || k.Attempt != len(m.attempts) {
		p.ledger.t.Errorf("%s: attempt %d is not this process's to end", k.Position, k.Attempt)
	}
	a.outcome = o
	p.ledger.open--
	return m, a
}

func (p *fakeProcess) Record(ctx context.Context, r message.Report) error {
	if err := cmp.Or(ctx.Err(), p.begin("record")); err != nil {
		return err
	}
	p.ledger.mu.Lock()
	defer p.ledger.mu.Unlock()
	m, a := p.end(message.AttemptKey{Position: r.Position, Attempt: r.Attempt}, r.Outcome)
	a.report = r
	if r.Outcome.NotTaken() || r.Outcome == message.Unknown && r.Resend != "" {
		m.waiting, m.due = r.Attempt+1, time.Now().Add(r.RetryIn)
		m.basis = cmp.Or(r.Resend, m.basis)
	}
	return nil
}

func (p *fakeProcess) Hold(ctx context.Context, k message.AttemptKey, reason string) error {
	if err := cmp.Or(ctx.Err(), p.begin("hold")); err != nil {
		return err
	}
	p.ledger.mu.Lock()
	defer p.ledger.mu.Unlock()
	m, _ := p.end(k, message.Returned)
	m.attempts = append(m.attempts, &fakeAttempt{kind: "hold", by: p, reason: reason})
	return nil
}

func (p *fakeProcess) Postpone(ctx context.Context, it message.Item, wait time.Duration) (bool, error) {
	if err := cmp.Or(ctx.Err(), p.begin("postpone")); err != nil {
		return false, err
	}
	p.ledger.mu.Lock()
	defer p.ledger.mu.Unlock()
	m, now := p.ledger.messages[it.Position], time.Now()
	switch {
	case m == nil || m.item.ID != it.ID || it.Attempt <= len(m.attempts) || !now.Before(m.expires):
		return false, nil
	case m.waiting == 0 && it.Attempt != 1, m.waiting > 0 && (m.waiting != it.Attempt || now.Before(m.due)):
		return false, nil
	}
	m.waiting, m.due = it.Attempt, now.Add(wait)
	if m.due.After(m.expires) {
		m.due = m.expires
	}
	m.aside++
	return true, nil
}

func (p *fakeProcess) Park(ctx context.Context, source string, raw []byte, reason string) error {
	if err := cmp.Or(ctx.Err(), p.begin("park")); err != nil {
		return err
	}
	p.ledger.mu.Lock()
	defer p.ledger.mu.Unlock()
	p.ledger.parked = append(p.ledger.parked, fmt.Sprintf("%s: %s: %d bytes", source, reason, len(raw)))
	return nil
}

// sorted lists the messages of a lane that pass ok, in order, with content.
func (l *fakeLedger) sorted(lane message.Lane, limit int, ok func(*fakeMessage) bool) (items []message.Item) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p, m := range l.messages {
		if p.Lane() == lane && ok(m) {
			it := m.item
			it.Attempt = max(1, m.waiting)
			if n := len(m.attempts); n > 0 {
				last := m.attempts[n-1]
				it.Before = message.Before{Provider: last.report.Provider, Outcome: last.outcome, Basis: m.basis}
			}
			if m.lost {
				it.Content = nil
			}
			items = append(items, it)
		}
	}
	slices.SortFunc(items, func(a, b message.Item) int { return cmp.Compare(a.Position, b.Position) })
	return items[:min(limit, len(items))]
}

func (p *fakeProcess) Unclaimed(ctx context.Context, lane message.Lane, age time.Duration, limit int) ([]message.Item, error) {
	if err := cmp.Or(ctx.Err(), p.begin("unclaimed")); err != nil {
		return nil, err
	}
	return p.ledger.sorted(lane, limit, func(m *fakeMessage) bool {
		return len(m.attempts) == 0 && m.waiting == 0 && time.Since(m.accepted) >= age
	}), nil
}

func (p *fakeProcess) Due(ctx context.Context, lane message.Lane, limit int) ([]message.Item, error) {
	if err := cmp.Or(ctx.Err(), p.begin("due")); err != nil {
		return nil, err
	}
	return p.ledger.sorted(lane, limit, func(m *fakeMessage) bool { return m.waiting > 0 && !time.Now().Before(m.due) }), nil
}

// Fair brings nothing: all messages here are one tenant's.
func (p *fakeProcess) Fair(context.Context, message.Lane, int) ([]message.Item, error) {
	return nil, nil
}

func (p *fakeProcess) TenantName(_ context.Context, id int32) (string, error) {
	return fmt.Sprint("tenant-", id), nil
}

func (p *fakeProcess) Content(ctx context.Context, pos message.Position) ([]byte, error) {
	if err := cmp.Or(ctx.Err(), p.begin("content")); err != nil {
		return nil, err
	}
	p.ledger.mu.Lock()
	defer p.ledger.mu.Unlock()
	m := p.ledger.messages[pos]
	if m == nil || m.lost {
		return nil, message.ErrNotFound
	}
	return m.item.Content, nil
}

func (p *fakeProcess) Beat(ctx context.Context, open []message.AttemptKey, giveUp time.Duration) error {
	if err := cmp.Or(ctx.Err(), p.begin("beat")); err != nil {
		return err
	}
	open = slices.Clone(open)
	p.beaten.Store(&open)
	p.giveUp.Store(int64(giveUp))
	p.beats.Add(1)
	return nil
}
