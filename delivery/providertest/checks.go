package providertest

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/message"
)

func (x *suite) declares() {
	if x.provider.Name() == "" {
		x.Error("Name is empty")
	}
	if got, want := x.provider.Channel(), x.subject.Envelope(0).Content.Channel(); got != want {
		x.Errorf("Channel is %v, want %v", got, want)
	}
	if x.provider.ReplyLimit() <= 0 {
		x.Errorf("ReplyLimit is %v", x.provider.ReplyLimit())
	}
}

func (x *suite) sent() {
	for range 3 {
		x.want("a good server", x.send(x.Context(), nil), message.Sent, 1, true)
	}
}

func (x *suite) lastFails() {
	for range 3 {
		x.want("last fails", x.send(x.Context(), errLast), message.Returned, 1, false)
	}
	x.works("last fails")
	// What was begun must not arrive late either: all is quiet after Close.
	if err := x.provider.Close(); err != nil {
		x.Fatalf("Close: %v", err)
	}
	x.server.Close()
	for n := range 3 {
		if x.got(n) {
			x.Errorf("message %d arrived although last had failed", n)
		}
	}
}

func (x *suite) clearAnswers() {
	for _, c := range []struct {
		fault Fault
		want  message.Outcome
	}{{Defer, message.Deferred}, {Reject, message.Rejected}} {
		if !x.has(c.fault) {
			continue
		}
		x.server.Misbehave(c.fault)
		for range 2 {
			x.want(c.fault.String(), x.send(x.Context(), nil), c.want, 1, true)
		}
		x.works(c.fault.String())
	}
}

func (x *suite) earlyFailures() {
	for _, f := range []Fault{EarlyDefer, EarlyCut} {
		if !x.has(f) {
			continue
		}
		x.server.Misbehave(f)
		x.want(f.String(), x.send(x.Context(), nil), message.Deferred, 0, false)
		x.works(f.String())
	}
}

func (x *suite) noClearAnswer() {
	for _, f := range []Fault{Cut, Garbage} {
		if !x.has(f) {
			continue
		}
		x.server.Misbehave(f)
		x.want(f.String(), x.send(x.Context(), nil), message.Unknown, 1, true)
		x.works(f.String())
	}
}

func (x *suite) contextEndsBefore() {
	ctx, cancel := context.WithCancel(x.Context())
	cancel()
	x.want("ctx had ended", x.send(ctx, nil), message.Returned, 0, false)
	x.works("ctx had ended")
}

func (x *suite) contextEndsEarly() {
	if x.has(EarlyHang) {
		x.endWhileHanging(EarlyHang, message.Returned, 0, false)
	}
}

func (x *suite) contextEndsAfter() {
	if x.has(Hang) {
		x.endWhileHanging(Hang, message.Unknown, 1, true)
	}
}

// endWhileHanging ends ctx once the server hangs; Send must return at once.
func (x *suite) endWhileHanging(f Fault, o message.Outcome, lasts int, got bool) {
	x.server.Misbehave(f)
	ctx, cancel := context.WithCancel(x.Context())
	defer cancel()
	slot := x.reserve()
	done := make(chan handOver, 1)
	go func() { done <- x.sendIn(ctx, slot, nil) }()
	select {
	case <-x.server.Hanging():
	case <-time.After(patience):
		x.Fatalf("%v: the server was never reached", f)
	}
	cancel()
	select {
	case h := <-done:
		x.want(f.String()+", ctx ends", h, o, lasts, got)
	case <-time.After(patience):
		x.Fatalf("%v: Send goes on after ctx has ended", f)
	}
	slot.Release()
	x.works(f.String() + ", ctx ends")
}

// foreignContent hands over a message that is none of this channel's.
func (x *suite) foreignContent() {
	own := x.subject.Envelope(0)
	env := *own
	env.Content = &message.Content{Push: &message.Push{Platform: "none"}}
	if own.Content.Push != nil {
		env.Content = &message.Content{Email: &message.Email{From: "a@a.example", To: []string{"b@b.example"}, Text: "x"}}
	}
	slot := x.reserve()
	r := slot.Send(x.Context(), &env, func() error {
		x.Error("last was called for another channel's content")
		return errLast
	})
	slot.Release()
	if r.Outcome != message.Rejected {
		x.Errorf("another channel's content: outcome is %v, want rejected", r.Outcome)
	}
	x.checkReply(r)
	x.works("another channel's content")
}

func (x *suite) releaseUnused() {
	for range 5 {
		first, second := x.reserve(), x.reserve()
		first.Release()
		second.Release()
	}
	x.works("slots were released unused")
	if got := len(x.server.Got()); got != x.next {
		x.Errorf("the server got %d messages, want %d", got, x.next)
	}
}

func (x *suite) reserveWaits() {
	first, second := x.reserve(), x.reserve()
	ctx, cancel := context.WithTimeout(x.Context(), 50*time.Millisecond)
	defer cancel()
	if slot, err := x.provider.Reserve(ctx); !errors.Is(err, context.DeadlineExceeded) {
		x.Errorf("Reserve beyond the limit: %v, %v, want deadline exceeded", slot, err)
	}
	type answer struct {
		slot delivery.Slot
		err  error
	}
	third := make(chan answer, 1)
	go func() {
		slot, err := x.provider.Reserve(x.Context())
		third <- answer{slot, err}
	}()
	select {
	case a := <-third:
		x.Fatalf("a third slot was given out of two: %v", a.err)
	case <-time.After(20 * time.Millisecond): // a chance to do wrong
	}
	first.Release()
	select {
	case a := <-third:
		if a.err != nil {
			x.Fatalf("Reserve after a Release: %v", a.err)
		}
		a.slot.Release()
	case <-time.After(patience):
		x.Fatal("Release didn't let the next one in")
	}
	second.Release()
	x.works("Reserve waited")
}

func (x *suite) reserveContext() {
	ctx, cancel := context.WithCancel(x.Context())
	cancel()
	if slot, err := x.provider.Reserve(ctx); !errors.Is(err, context.Canceled) {
		x.Errorf("Reserve with an ended ctx: %v, %v", slot, err)
	}
	x.works("Reserve had an ended ctx")
}

func (x *suite) reserveWhileDown() {
	if !x.has(Down) {
		return
	}
	x.server.Misbehave(Down)
	ctx, cancel := context.WithTimeout(x.Context(), patience)
	defer cancel()
	for range 5 {
		slot, err := x.provider.Reserve(ctx)
		if err == nil {
			slot.Release()
			x.Fatal("Reserve gave a slot while the server was down")
		}
		if ctx.Err() != nil {
			x.Fatalf("Reserve doesn't fail by itself while the server is down: %v", err)
		}
	}
	x.works("the server was down")
}

func (x *suite) concurrent() {
	const senders, each = 8, 25
	var wg sync.WaitGroup
	var mu sync.Mutex
	active, most := 0, 0
	for s := range senders {
		wg.Go(func() {
			for i := range each {
				slot, err := x.provider.Reserve(x.Context())
				if err != nil {
					x.Errorf("Reserve: %v", err)
					return
				}
				mu.Lock()
				active++
				most = max(most, active)
				mu.Unlock()
				r := slot.Send(x.Context(), x.subject.Envelope(s*each+i), func() error { return nil })
				mu.Lock()
				active--
				mu.Unlock()
				slot.Release()
				if r.Outcome != message.Sent {
					x.Errorf("message %d: %v (%s)", s*each+i, r.Outcome, r.Reply)
				}
			}
		})
	}
	wg.Wait()
	if most > 2 {
		x.Errorf("%d hand-overs ran at a time, want at most 2", most)
	}
	for n := range senders * each {
		if !x.got(n) {
			x.Errorf("message %d didn't arrive", n)
		}
	}
}

func (x *suite) closed() {
	x.works("before Close")
	if err := x.provider.Close(); err != nil {
		x.Errorf("Close: %v", err)
	}
	if slot, err := x.provider.Reserve(x.Context()); err == nil {
		slot.Release()
		x.Error("Reserve gave a slot after Close")
	}
}
