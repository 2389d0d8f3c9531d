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

	"github.com/stormpost/stormpost/internal/message"
)

// errPastLife is what waiting at a gate ends with when the message's life does.
var errPastLife = errors.New("the message has expired")

// gate stands before one provider. It shares the provider's slots between the
// classes (see Route), and closes when the provider can't be used: then those
// who wait keep their items, and one at a time tries again, after pauses that
// grow to some seconds.
type gate struct {
	provider Provider
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
	trouble error       // what closed it last
	shut    time.Time   // when it closed
	rate    pace
	tick    *time.Timer // calls when the pace lets in the next

	ended [message.Returned + 1]atomic.Int64 // hand-overs by outcome
}

const (
	gateOpen   int32 = iota
	gateClosed       // until the timer fires
	gateAjar         // for one to try
)

func newGate(r Route, log *slog.Logger) *gate {
	g := &gate{provider: r.Provider, slots: r.Slots, log: log.With("provider", r.Provider.Name())}
	if r.Slots >= int(message.Campaign) {
		g.keep[message.Transactional] = max(1, r.Slots/4)
		g.keep[message.Trigger] = max(1, r.Slots/8)
		g.keep[message.Campaign] = max(1, r.Slots/8)
	}
	g.pause = backoff.NewExponentialBackOff()
	g.pause.InitialInterval, g.pause.MaxInterval, g.pause.MaxElapsedTime = 250*time.Millisecond, 10*time.Second, 0
	g.pause.Reset()
	return g
}

// lease is a slot together with its place at the gate. The zero lease is none.
type lease struct {
	slot  Slot
	gate  *gate
	class message.Class
}

// release gives both back.
func (l lease) release() {
	if l.gate == nil {
		return
	}
	if err := guarded(l.slot.Release); err != nil {
		l.gate.log.Error("provider failed to release a slot", "error", err)
	}
	l.gate.leave(l.class)
}

// reserve waits for a slot until ctx ends, or until the wall clock says that
// expires has passed, unless that is zero; then it returns errPastLife.
func (g *gate) reserve(ctx context.Context, class message.Class, expires time.Time) (lease, error) {
	for {
		if err := g.enter(ctx, class, expires); err != nil {
			return lease{}, err
		}
		var slot Slot
		var err error
		if bad := guarded(func() { slot, err = g.provider.Reserve(ctx) }); bad != nil {
			err = bad
		}
		switch {
		case err == nil && slot == nil:
			err = errors.New("provider reserved no slot")
		case err == nil:
			if g.state.Load() != gateOpen {
				g.open()
			}
			return lease{slot, g, class}, nil
		case ctx.Err() != nil:
			g.forgo(class)
			return lease{}, ctx.Err()
		}
		g.close(err)
		g.leave(class)
	}
}

// enter waits for a place. Whoever gets one leaves it again.
func (g *gate) enter(ctx context.Context, class message.Class, expires time.Time) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	g.mu.Lock()
	if g.admits(class) {
		g.admit(class)
		g.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	g.waiting[class] = append(g.waiting[class], turn)
	g.wind()
	g.mu.Unlock()

	var past <-chan time.Time
	if !expires.IsZero() {
		timer := time.NewTimer(time.Until(expires) + lapse)
		defer timer.Stop()
		past = timer.C
	}
	var err error
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-past:
		err = errPastLife
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

// admits says whether one of class may enter. A class may always have what is
// kept for it, and beyond that what is free and not kept for another.
func (g *gate) admits(class message.Class) bool {
	if state := g.state.Load(); state == gateClosed || state == gateAjar && g.probing {
		return false
	}
	if g.rate.wait(time.Now()) > 0 {
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

func (g *gate) admit(class message.Class) {
	g.held[class]++
	g.total++
	g.rate.begin(time.Now())
	g.probing = g.state.Load() == gateAjar
}

// call lets in whoever may enter, the most urgent first.
func (g *gate) call() {
	for c := message.Transactional; c <= message.Campaign; c++ {
		for len(g.waiting[c]) > 0 && g.admits(c) {
			turn := g.waiting[c][0]
			g.waiting[c] = g.waiting[c][1:]
			g.admit(c)
			close(turn)
		}
	}
	g.wind()
}

// wind has call come again when the pace lets in the next. The caller holds mu.
func (g *gate) wind() {
	wait := g.rate.wait(time.Now())
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

// learn lets the pace know how a hand-over ended.
func (g *gate) learn(o message.Outcome) {
	g.ended[o].Add(1)
	if o == message.Returned {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.rate.ended(time.Now(), o == message.Sent || o == message.Rejected) {
		return
	}
	if g.rate.rate == 0 {
		g.log.Info("provider takes everything again; its pace is free")
	} else {
		g.log.Warn("provider takes less than it gets; its pace follows", "rate", g.rate.rate)
	}
	g.call()
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

// open lets everybody in again: a slot was had.
func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
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
	switch g.state.Load() {
	case gateClosed:
		return
	case gateOpen:
		g.log.Warn("provider can't be used; its messages wait", "error", err)
		g.shut = time.Now()
	}
	g.trouble = err
	g.state.Store(gateClosed)
	// The next to try is who waited for longest in the most urgent class.
	g.timer = time.AfterFunc(g.pause.NextBackOff(), func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.state.Load() == gateClosed {
			g.state.Store(gateAjar)
			g.probing = false
			g.call()
		}
	})
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
