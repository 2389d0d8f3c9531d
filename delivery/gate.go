package delivery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/sony/gobreaker/v2"

	"github.com/stormpost/stormpost/internal/message"
)

// errShut is what waiting at a gate ends with when the message can go elsewhere.
var errShut = errors.New("the provider can't be used, another can")

// shutTick is how often those who wait look for another provider.
const shutTick = 250 * time.Millisecond

// slotWithin is how long a slot is waited for when the message can go elsewhere.
const slotWithin = 10 * time.Second

// errPastLife is what waiting at a gate ends with when the message's life does.
var errPastLife = errors.New("the message has expired")

// gate stands before one provider. It shares the provider's slots between the
// classes (see Route), and closes when the provider can't be used, or most
// hand-overs fail by its fault (see breaker): then those who wait keep their
// items, and one at a time tries again, after pauses that grow to some seconds.
// What closed it opens it: a slot that was had, or a hand-over that was answered.
type gate struct {
	provider Provider
	takes    func(*message.Content) bool // as Route has it
	slots    int
	log      *slog.Logger

	state atomic.Int32 // written under mu

	mu      sync.Mutex
	keep    [message.Campaign + 1]int // slots that no other class can take
	held    [message.Campaign + 1]int
	waiting [message.Campaign + 1][]chan struct{} // most urgent class first, then in order of arrival
	total   int                                   // of held
	probing bool                                  // when ajar: somebody is trying
	pause   *backoff.ExponentialBackOff
	timer   *time.Timer // of closed
	until   time.Time   // when it fires
	trouble error       // what closed it last
	shut    time.Time   // when it closed
	passed  time.Time   // when a message looked whether it could be used, and it was shut
	breaker atomic.Pointer[breaker]
	rate    pace
	recent  recent
	tick    *time.Timer // calls when the pace lets in the next

	ended [message.Returned + 1]atomic.Int64 // hand-overs by outcome
}

const (
	gateOpen   int32 = iota
	gateClosed       // until the timer fires
	gateAjar         // for one to try
)

func newGate(r Route, log *slog.Logger) *gate {
	g := &gate{provider: r.Provider, takes: r.takes, slots: r.Slots, log: log.With("provider", r.Provider.Name())}
	if r.Slots >= int(message.Campaign) {
		g.keep[message.Transactional] = max(1, r.Slots/4)
		g.keep[message.Trigger] = max(1, r.Slots/8)
		g.keep[message.Campaign] = max(1, r.Slots/8)
	}
	g.pause = backoff.NewExponentialBackOff()
	g.pause.InitialInterval, g.pause.MaxInterval, g.pause.MaxElapsedTime = 250*time.Millisecond, 10*time.Second, 0
	g.pause.Reset()
	g.rate.most = r.Rate
	g.breaker.Store(newBreaker())
	return g
}

// most is how many slots class can have, with what is kept for the others; 0 is
// without a bound.
func (g *gate) most(class message.Class) int {
	n := g.slots
	for c := message.Transactional; c <= message.Campaign; c++ {
		if c != class {
			n -= g.keep[c]
		}
	}
	return n
}

// lease is a slot together with its place at the gate. The zero lease is none.
type lease struct {
	slot    Slot
	gate    *gate
	class   message.Class
	breaker *breaker  // that it counts for; nil: it tries whether the provider is mended
	until   time.Time // of the gate's pause, if it tries
	judged  bool      // the provider was asked, and learn knows what it said
}

// release gives both back. Without a verdict of the provider's it is as if it had
// never been had.
func (l lease) release() {
	if l.gate == nil {
		return
	}
	if err := guarded(l.slot.Release); err != nil {
		l.gate.log.Error("provider failed to release a slot", "error", err)
	}
	if !l.judged {
		l.gate.unasked(l)
	}
	l.gate.leave(l.class)
}

// reserve waits for a slot until ctx ends, or until the wall clock says that
// expires has passed, unless that is zero; then it returns errPastLife. While
// the provider can't be used and elsewhere, if there is one, says that another
// can, it returns errShut.
func (g *gate) reserve(ctx context.Context, class message.Class, expires time.Time, elsewhere func() bool) (lease, error) {
	for {
		if err := g.enter(ctx, class, expires, elsewhere); err != nil {
			return lease{}, err
		}
		var slot Slot
		var err error
		if bad := guarded(func() { slot, err = g.ask(ctx, elsewhere) }); bad != nil {
			err = bad
		}
		switch {
		case err == nil && slot == nil:
			err = errors.New("provider reserved no slot")
		case err == nil:
			l := lease{slot: slot, gate: g, class: class}
			l.breaker, l.until = g.tried()
			return l, nil
		case ctx.Err() != nil:
			g.forgo(class)
			return lease{}, ctx.Err()
		}
		g.close(err)
		g.leave(class)
	}
}

// ask is the provider's Reserve. One that has given no slot for slotWithin, while
// another can be used, can't be. But whoever tries whether it is mended waits for
// as long as it takes: else of two that are slow neither would ever be used.
func (g *gate) ask(ctx context.Context, elsewhere func() bool) (Slot, error) {
	if elsewhere == nil || g.state.Load() != gateOpen {
		return g.provider.Reserve(ctx)
	}
	within, cancel := context.WithTimeout(ctx, slotWithin)
	defer cancel()
	slot, err := g.provider.Reserve(within)
	switch {
	case err == nil || within.Err() == nil || ctx.Err() != nil:
		return slot, err
	case elsewhere():
		return nil, fmt.Errorf("it gave no slot for %s", slotWithin)
	}
	return g.provider.Reserve(ctx)
}

// enter waits for a place. Whoever gets one leaves it again.
func (g *gate) enter(ctx context.Context, class message.Class, expires time.Time, elsewhere func() bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	g.mu.Lock()
	now := time.Now()
	if g.admits(class, now) {
		g.admit(class, now)
		g.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	g.waiting[class] = append(g.waiting[class], turn)
	g.wind(now)
	g.mu.Unlock()

	var past <-chan time.Time
	if !expires.IsZero() {
		timer := time.NewTimer(time.Until(expires) + lapse)
		defer timer.Stop()
		past = timer.C
	}
	var look <-chan time.Time
	if elsewhere != nil {
		ticker := time.NewTicker(shutTick)
		defer ticker.Stop()
		look = ticker.C
	}
	var err error
	for err == nil {
		if elsewhere != nil && g.state.Load() != gateOpen && elsewhere() {
			err = errShut
			break
		}
		select {
		case <-turn:
			return nil
		case <-ctx.Done():
			err = ctx.Err()
		case <-past:
			err = errPastLife
		case <-look:
		}
	}
	g.mu.Lock()
	i := slices.Index(g.waiting[class], turn)
	if i >= 0 {
		g.waiting[class] = slices.Delete(g.waiting[class], i, i+1)
	}
	g.mu.Unlock()
	if i < 0 { // the turn came at the same moment
		g.forgo(class)
	}
	return err
}

// usable says whether a message had better go here than wait: slots can be had,
// or it is time to try.
func (g *gate) usable() bool {
	state := g.state.Load()
	if state == gateOpen {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.passed = time.Now()
	return state == gateAjar && !g.probing
}

// admits says whether one of class may enter. A class may always have what is
// kept for it, and beyond that what is free and not kept for another.
func (g *gate) admits(class message.Class, now time.Time) bool {
	if state := g.state.Load(); state == gateClosed || state == gateAjar && g.probing {
		return false
	}
	if g.rate.wait(now) > 0 {
		return false
	}
	if g.slots == 0 {
		return true
	}
	free := g.slots - g.total
	if free > 0 && g.held[class] < g.keep[class] {
		return true
	}
	for c := message.Transactional; c <= message.Campaign; c++ {
		if c != class {
			free -= max(0, g.keep[c]-g.held[c])
		}
	}
	return free > 0
}

func (g *gate) admit(class message.Class, now time.Time) {
	g.held[class]++
	g.total++
	g.rate.begin(now)
	g.probing = g.state.Load() == gateAjar
}

// call lets in whoever may enter, the most urgent first.
func (g *gate) call() {
	now := time.Now()
	for c := message.Transactional; c <= message.Campaign; c++ {
		for len(g.waiting[c]) > 0 && g.admits(c, now) {
			turn := g.waiting[c][0]
			g.waiting[c] = g.waiting[c][1:]
			g.admit(c, now)
			close(turn)
		}
	}
	g.wind(now)
}

// wind has call come again when the pace lets in the next; now is when it let
// nobody in. The caller holds mu.
func (g *gate) wind(now time.Time) {
	wait := g.rate.wait(now)
	if wait == 0 || len(g.waiting[message.Transactional])+len(g.waiting[message.Trigger])+len(g.waiting[message.Campaign]) == 0 {
		return
	}
	if g.tick == nil {
		g.tick = time.AfterFunc(wait, func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.call()
		})
		return
	}
	g.tick.Reset(wait)
}

func (g *gate) leave(class message.Class) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held[class]--
	g.total--
	g.call()
}

// forgo leaves without having found out whether the provider can be used.
func (g *gate) forgo(class message.Class) {
	g.mu.Lock()
	g.probing = false
	g.mu.Unlock()
	g.leave(class)
}

// tried is called with a slot that was had, and returns the breaker that its
// hand-over counts for. That opens an ajar gate, unless the breaker closed it: then
// only the hand-over's end does, and meanwhile, after a pause, another one tries.
func (g *gate) tried() (b *breaker, until time.Time) {
	if g.state.Load() == gateOpen {
		return g.breaker.Load(), until
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch b = g.breaker.Load(); {
	case g.state.Load() != gateAjar: // let in before it closed
		return b, until
	case b.State() == gobreaker.StateClosed:
		g.open()
		return b, until
	}
	g.wait(g.pause.NextBackOff())
	return nil, g.until
}

// unasked takes l's turn at the pace back; and if it was to try whether the
// provider is mended, the next may at once.
func (g *gate) unasked(l lease) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rate.back(time.Now())
	if l.breaker == nil && g.state.Load() == gateClosed && g.until.Equal(l.until) {
		g.timer.Stop()
		g.state.Store(gateAjar)
		g.probing = false
	}
}

// mend opens a gate that the breaker closed: a hand-over was answered.
func (g *gate) mend() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.breaker.Load().State() != gobreaker.StateClosed {
		g.breaker.Store(newBreaker())
		g.rate.rested(time.Now())
		g.open()
	}
}

// open lets everybody in again. The caller holds mu.
func (g *gate) open() {
	if g.state.Load() == gateOpen {
		return
	}
	g.state.Store(gateOpen)
	g.timer.Stop()
	g.pause.Reset()
	g.log.Info("provider can be used again")
	g.call()
}

// close keeps everybody out for a while. Those who were let in together and
// fail together count as one failure.
func (g *gate) close(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state.Load() == gateClosed {
		return
	}
	g.closeFor(g.pause.NextBackOff(), err)
}

// closeFor closes for a pause. The caller holds mu.
func (g *gate) closeFor(pause time.Duration, err error) {
	if g.state.Load() == gateOpen {
		g.log.Warn("provider can't be used; its messages wait", "error", err)
		g.shut = time.Now()
	}
	g.trouble = err
	g.wait(pause)
}

// wait keeps everybody out until pause is over. The caller holds mu.
func (g *gate) wait(pause time.Duration) {
	g.state.Store(gateClosed)
	g.until = time.Now().Add(pause)
	if g.timer != nil {
		g.timer.Stop()
	}
	// The next to try is who waited for longest in the most urgent class.
	g.timer = time.AfterFunc(pause, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.state.Load() == gateClosed && !time.Now().Before(g.until) {
			g.state.Store(gateAjar)
			g.probing = false
			g.call()
		}
	})
}

// rest grants the pause that the provider asks for. The caller holds mu.
func (g *gate) rest(now time.Time, pause time.Duration, why error) {
	if pause < restShut {
		g.rate.hold(now.Add(pause))
		return
	}
	if g.state.Load() != gateClosed || g.until.Before(now.Add(pause)) {
		g.closeFor(pause, why)
	}
}

// stop ends the timer. Nobody may wait any more.
func (g *gate) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.timer != nil {
		g.timer.Stop()
	}
	if g.tick != nil {
		g.tick.Stop()
	}
}

// guarded calls into a provider's code and survives it.
func guarded(call func()) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v", v)
		}
	}()
	call()
	return nil
}
