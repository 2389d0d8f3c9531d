package delivery

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

func testGate(p *fakeProvider, slots int) *gate {
	return newGate(Route{Provider: p, Slots: slots}, slog.New(slog.DiscardHandler))
}

// Whatever comes and goes: never more than there are, and each class can have
// what is kept for it at once, whoever holds the rest.
func TestGateShares(t *testing.T) {
	for _, slots := range []int{1, 2, 3, 4, 8, 16, 100} {
		synctest.Test(t, func(t *testing.T) {
			g := testGate(&fakeProvider{channel: message.ChannelEmail}, slots)
			rnd := rand.New(rand.NewPCG(1, uint64(slots)))
			var held []lease
			enter := func(c message.Class) bool {
				ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
				defer cancel()
				l, err := g.reserve(ctx, c, time.Time{}, nil)
				if err == nil {
					held = append(held, l)
				}
				return err == nil
			}
			for range 2000 {
				if rnd.IntN(3) > 0 {
					enter(message.Class(1 + rnd.IntN(3)))
				} else if n := len(held); n > 0 {
					i := rnd.IntN(n)
					held[i].release()
					held[i] = held[n-1]
					held = held[:n-1]
				}
				if len(held) > slots {
					t.Fatalf("%d of %d slots are held", len(held), slots)
				}
			}
			for c := message.Transactional; c <= message.Campaign; c++ {
				for g.held[c] < g.keep[c] {
					if !enter(c) {
						t.Fatalf("%s can't have what is kept for it: %v of %d", c, g.held, slots)
					}
				}
			}
			for _, l := range held {
				l.release()
			}
			// Alone, transactional may have all but what is kept for the others.
			n := 0
			for held = nil; enter(message.Transactional); n++ {
			}
			if want := slots - g.keep[message.Trigger] - g.keep[message.Campaign]; n != want {
				t.Fatalf("transactional had %d of %d slots, want %d", n, slots, want)
			}
			for _, l := range held {
				l.release()
			}
		})
	}
}

// Of those who wait the most urgent goes first, and among equals who came first.
func TestGateOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := testGate(&fakeProvider{channel: message.ChannelEmail}, 1)
		first, err := g.reserve(t.Context(), message.Campaign, time.Time{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan int, 6)
		var wg sync.WaitGroup
		for i, c := range []message.Class{message.Campaign, message.Trigger, message.Transactional, message.Campaign, message.Transactional} {
			wg.Go(func() {
				l, err := g.reserve(t.Context(), c, time.Time{}, nil)
				if err != nil {
					t.Error(err)
					return
				}
				got <- i
				time.Sleep(time.Second)
				l.release()
			})
			synctest.Wait()
		}
		first.release()
		for _, want := range []int{2, 4, 1, 0, 3} {
			if i := <-got; i != want {
				t.Errorf("%d went, want %d", i, want)
			}
		}
		wg.Wait()
	})
}

// While the provider is down one at a time tries, whoever gives up takes
// nothing along, and the first success lets everybody in.
func TestGateProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down trouble
		down.on.Store(true)
		trying, most := 0, 0
		p := &fakeProvider{channel: message.ChannelEmail}
		p.reserve = func(ctx context.Context) error {
			if !down.on.Load() {
				return nil
			}
			if p.reserved.Load() > 1 {
				trying++
				most = max(most, trying)
				time.Sleep(time.Second)
				trying--
			}
			return errTrouble
		}
		g := testGate(p, 0)
		defer g.stop()
		results := make(chan error, 100)
		for i := range 100 {
			go func() {
				ctx := t.Context()
				expires := time.Time{}
				switch {
				case i%4 == 1:
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, time.Duration(i)*time.Second/3)
					defer cancel()
				case i%4 == 2:
					expires = time.Now().Add(time.Duration(i) * time.Second / 3)
				}
				if i > 0 {
					time.Sleep(time.Millisecond) // after the first has found it down
				}
				l, err := g.reserve(ctx, message.Trigger, expires, nil)
				l.release()
				results <- err
			}()
		}
		idle(5 * time.Minute)
		if most != 1 {
			t.Errorf("%d tried at once", most)
		}
		down.on.Store(false)
		idle(20 * time.Second)
		synctest.Wait()
		count := make(map[error]int)
		for range 100 {
			count[<-results]++
		}
		if count[nil] != 50 || count[context.DeadlineExceeded] != 25 || count[errPastLife] != 25 {
			t.Errorf("%v", count)
		}
		if g.total != 0 || p.held.Load() != 0 {
			t.Errorf("%d places, %d slots are still held", g.total, p.held.Load())
		}
	})
}

// Whoever gives up leaves no place taken, not even when its turn comes at that
// very moment, nor while Reserve is at work.
func TestGateGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fakeProvider{channel: message.ChannelEmail}
		g := testGate(p, 1)
		for range 100 {
			first, err := g.reserve(t.Context(), message.Trigger, time.Time{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				l, _ := g.reserve(ctx, message.Trigger, time.Time{}, nil)
				l.release()
			}()
			synctest.Wait()
			cancel() // and before it has noticed:
			first.release()
			synctest.Wait()
			if g.total != 0 || p.held.Load() != 0 {
				t.Fatalf("%d places, %d slots are still held", g.total, p.held.Load())
			}
		}
		p.reserve = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := g.reserve(ctx, message.Trigger, time.Time{}, nil); !errors.Is(err, context.DeadlineExceeded) || g.total != 0 || g.state.Load() != gateOpen {
			t.Errorf("%v, %d places are still held, state %d", err, g.total, g.state.Load())
		}
	})
}

// A provider that panics in Reserve, or reserves nothing, is one that is down.
func TestGateGuards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fakeProvider{channel: message.ChannelEmail}
		p.reserve = func(context.Context) error {
			if p.reserved.Load() < 3 {
				panic("reserve")
			}
			return nil
		}
		g := testGate(p, 1)
		defer g.stop()
		l, err := g.reserve(t.Context(), message.Trigger, time.Time{}, nil)
		if err != nil || p.reserved.Load() != 3 {
			t.Fatalf("after %d tries: %v", p.reserved.Load(), err)
		}
		l.release()
		l.release() // panics inside, and is survived
		if p.held.Load() != 0 {
			t.Error("not released")
		}

		empty := newGate(Route{Provider: slotless{p}}, slog.New(slog.DiscardHandler))
		defer empty.stop()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := empty.reserve(ctx, message.Trigger, time.Time{}, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("no slot at all: %v", err)
		}
	})
}

type slotless struct{ *fakeProvider }

func (slotless) Reserve(context.Context) (Slot, error) { return nil, nil }
