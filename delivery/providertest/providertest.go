// Package providertest is the conformance suite of delivery.Provider: what
// every provider must do, whatever its protocol is. A provider's own tests
// describe its server as a Subject and call Run.
package providertest

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"go.uber.org/goleak"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/message"
)

// Fault is a way for a server to misbehave, relative to the irrevocable write
// of a hand-over.
type Fault uint8

// The faults. What a protocol can't do is listed in Subject.Lacks.
const (
	None       Fault = iota // every message is taken
	Down                    // nobody can connect, or nobody can sign in
	EarlyDefer              // before the write: a clear "not now"
	EarlyCut                // before the write: the connection is closed
	EarlyHang               // before the write: silence
	Defer                   // after it: a clear "not now"
	Reject                  // after it: a clear "never"
	Cut                     // after it: the connection is closed without an answer
	Garbage                 // after it: an answer that means nothing
	Hang                    // after it: silence
)

var faultNames = [...]string{"None", "Down", "EarlyDefer", "EarlyCut", "EarlyHang", "Defer", "Reject", "Cut", "Garbage", "Hang"}

func (f Fault) String() string { return faultNames[f] }

// Server is the provider's counterpart, told by the suite what to do. Its
// methods are safe for concurrent use.
type Server interface {
	// Misbehave sets the fault of what arrives from now on.
	Misbehave(f Fault)
	// Got lists the messages whose irrevocable write arrived in whole, whatever
	// was answered, by the number that Subject.Envelope was given.
	Got() []int
	// Hanging receives once for each hand-over that begins to hang; the suite
	// receives all of them.
	Hanging() <-chan struct{}
	// Close ends the server and everything that hangs in it, and waits. It may be
	// called again.
	Close()
}

// Subject is the provider under test.
type Subject struct {
	// Start makes a server, and a provider of it that allows the given number of
	// hand-overs at a time, with a reply limit of many seconds. The suite closes both.
	Start func(t *testing.T, concurrency int) (delivery.Provider, Server)
	// Envelope is the nth message, n from 0.
	Envelope func(n int) *message.Envelope
	// Lacks lists the faults that the protocol has no place for.
	Lacks []Fault
}

// patience bounds everything that must happen soon. It is never waited for
// unless the test fails.
const patience = 20 * time.Second

// Run checks s, one subtest for each promise.
func Run(t *testing.T, s Subject) {
	for _, c := range []struct {
		name  string
		check func(*suite)
	}{
		{"Declares", (*suite).declares},
		{"Sent", (*suite).sent},
		{"LastFails", (*suite).lastFails},
		{"ClearAnswers", (*suite).clearAnswers},
		{"EarlyFailures", (*suite).earlyFailures},
		{"NoClearAnswer", (*suite).noClearAnswer},
		{"ContextEndsBefore", (*suite).contextEndsBefore},
		{"ContextEndsEarly", (*suite).contextEndsEarly},
		{"ContextEndsAfter", (*suite).contextEndsAfter},
		{"ForeignContent", (*suite).foreignContent},
		{"ReleaseUnused", (*suite).releaseUnused},
		{"ReserveWaits", (*suite).reserveWaits},
		{"ReserveContext", (*suite).reserveContext},
		{"ReserveWhileDown", (*suite).reserveWhileDown},
		{"Concurrent", (*suite).concurrent},
		{"Closed", (*suite).closed},
	} {
		t.Run(c.name, func(t *testing.T) {
			leaks := goleak.IgnoreCurrent()
			x := &suite{T: t, subject: s}
			x.provider, x.server = s.Start(t, 2)
			defer goleak.VerifyNone(t, leaks)
			defer x.server.Close()
			defer func() {
				if err := x.provider.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			}()
			c.check(x)
		})
	}
}

// suite is one subtest, with a provider and a server of its own.
type suite struct {
	*testing.T
	subject  Subject
	provider delivery.Provider
	server   Server
	next     int // number of the next message
}

func (x *suite) has(f Fault) bool {
	for _, lacked := range x.subject.Lacks {
		if lacked == f {
			return false
		}
	}
	return true
}

func (x *suite) reserve() delivery.Slot {
	x.Helper()
	ctx, cancel := context.WithTimeout(x.Context(), patience)
	defer cancel()
	slot, err := x.provider.Reserve(ctx)
	if err != nil {
		x.Fatalf("Reserve: %v", err)
	}
	return slot
}

// handOver is one hand-over and what was seen of it.
type handOver struct {
	message.Result
	number int // of the message
	lasts  int // calls of last
	early  bool
}

// got says whether the server has the message, and fails if it has it twice.
func (x *suite) got(number int) bool {
	x.Helper()
	count := 0
	for _, n := range x.server.Got() {
		if n == number {
			count++
		}
	}
	if count > 1 {
		x.Errorf("the server got message %d %d times", number, count)
	}
	return count > 0
}

// send hands the next message over; last answers lastErr.
func (x *suite) send(ctx context.Context, lastErr error) handOver {
	x.Helper()
	slot := x.reserve()
	defer slot.Release()
	return x.sendIn(ctx, slot, lastErr)
}

func (x *suite) sendIn(ctx context.Context, slot delivery.Slot, lastErr error) handOver {
	x.Helper()
	h := handOver{number: x.next}
	x.next++
	h.Result = slot.Send(ctx, x.subject.Envelope(h.number), func() error {
		h.lasts++
		h.early = h.early || x.got(h.number)
		return lastErr
	})
	if h.early {
		x.Errorf("message %d was handed over before last was called", h.number)
	}
	x.checkReply(h.Result)
	return h
}

func (x *suite) checkReply(r message.Result) {
	x.Helper()
	if len(r.Reply) > 500 || !utf8.ValidString(r.Reply) || strings.ContainsFunc(r.Reply, unicode.IsControl) {
		x.Errorf("Reply is not one line of at most 500 bytes: %q", r.Reply)
	}
	if r.RetryAfter < 0 {
		x.Errorf("RetryAfter is %v", r.RetryAfter)
	}
}

// want compares a hand-over with what the contract says.
func (x *suite) want(what string, h handOver, o message.Outcome, lasts int, got bool) {
	x.Helper()
	if h.Outcome != o {
		x.Errorf("%s: outcome is %v (%s), want %v", what, h.Outcome, h.Reply, o)
	}
	if h.lasts != lasts {
		x.Errorf("%s: last was called %d times, want %d", what, h.lasts, lasts)
	}
	if has := x.got(h.number); has != got {
		x.Errorf("%s: the server has the message: %v, want %v", what, has, got)
	}
}

// works fails the test unless messages can be sent, in every slot.
func (x *suite) works(what string) {
	x.Helper()
	x.server.Misbehave(None)
	first, second := x.reserveSoon(), x.reserveSoon()
	defer first.Release()
	defer second.Release()
	for _, slot := range []delivery.Slot{first, second} {
		x.want(what+", then another message", x.sendIn(x.Context(), slot, nil), message.Sent, 1, true)
	}
}

// reserveSoon is reserve for when the provider may be backing off.
func (x *suite) reserveSoon() delivery.Slot {
	x.Helper()
	ctx, cancel := context.WithTimeout(x.Context(), patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		slot, err := x.provider.Reserve(ctx)
		if err == nil {
			return slot
		}
		if ctx.Err() != nil {
			x.Fatalf("Reserve: %v", err)
		}
		<-tick.C
	}
}

var errLast = errors.New("providertest: the claim is too old")
