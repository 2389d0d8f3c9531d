package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Step is a point of a conversation at which a server can misbehave.
type Step string

// The SMTP server's steps, in order. A step comes before the server's usual
// answer to what its name says.
const (
	StepConnect  Step = "connect"  // before the greeting
	StepEHLO     Step = "ehlo"     // EHLO and HELO
	StepSTARTTLS Step = "starttls" // before 220
	StepAuth     Step = "auth"     // before credentials are looked at
	StepMail     Step = "mail"
	StepRcpt     Step = "rcpt"    // its Event has this one recipient
	StepData     Step = "data"    // before 354
	StepMidData  Step = "middata" // after the first line of the message's body
	StepDot      Step = "dot"     // the final dot was read, nothing is stored
	StepReply    Step = "reply"   // stored, not answered
	StepQuit     Step = "quit"
)

// The HTTP servers' steps, in order; beside StepConnect (before the first byte
// is read, also of TLS) and StepReply (stored, or the token made; not answered).
const (
	StepHeaders Step = "headers" // before the body is read
	StepBody    Step = "body"    // the request was read, nothing is stored
)

// Action is what a server does instead of what it should.
type Action string

// The actions. Each one first waits for Delay and then calls Hook.
const (
	Slow    Action = "slow"    // nothing else: it goes on as usual
	Answer  Action = "answer"  // answer with Code; in SMTP, 421 then closes
	Hang    Action = "hang"    // answer nothing until the connection ends
	Drop    Action = "drop"    // close the connection (FIN)
	Reset   Action = "reset"   // abort the connection (RST)
	Partial Action = "partial" // the beginning of an answer, then Drop
	Garbage Action = "garbage" // bytes that are no answer; with an HTTP Code, that status with a page for people
)

var actions = []Action{Slow, Answer, Hang, Drop, Reset, Partial, Garbage}

// Fault is one misbehaviour. The zero values of all but Step mean: always, for
// everyone, for ever, at once.
type Fault struct {
	Step Step
	Do   Action // Slow if empty

	// Which events it is for: all that are set must hold.
	To          string           // part of one of the recipients
	Subject     string           // part of the subject; known from StepMidData or StepBody on
	Match       func(Event) bool // called by one goroutine at a time; mustn't change faults
	Probability float64          // of 0 to 1; 0 is always

	Times int           // how often; 0 is without end
	For   time.Duration // how long from when it is set; 0 is without end
	Delay time.Duration // before it acts; ends early when the server closes

	// Code is Answer's SMTP reply code or HTTP status. Without it, HTTP answers
	// with Error's documented status.
	Code int
	// Error is Answer's FCM or OAuth error code, as UNREGISTERED or
	// invalid_grant; in SMTP the reply's text.
	Error      string
	RetryAfter time.Duration // HTTP Answer's Retry-After, in whole seconds
	// Hook is called in the server's goroutine, which waits for it.
	Hook func(Event)
}

// Event is where a conversation is when a fault is looked for. What isn't known
// yet at Step is empty.
type Event struct {
	Step    Step
	Conn    uint64 // as in Taken
	Peer    net.Addr
	From    string
	To      []string
	Subject string
	// MessageID is as in Taken, known when Subject is.
	MessageID string
}

// Faults is a server's misbehaviour. It can be changed at any time, also by a
// Hook. For each event the first matching fault acts, in the order in which
// they were set; one that has acted Times times is gone.
type Faults struct {
	steps []Step             // that this server has
	check func(*Fault) error // what else this server asks of a fault
	clock func() time.Time
	some  atomic.Bool // is there any? asked on the hot path

	mu   sync.Mutex
	list []*setFault
}

type setFault struct {
	Fault
	until time.Time // zero: for ever
	left  int       // 0: without end
}

func newFaults(clock func() time.Time, check func(*Fault) error, steps ...Step) *Faults {
	return &Faults{steps: steps, check: check, clock: clock}
}

// SetFaults replaces all faults, or on an error none.
func (f *Faults) SetFaults(faults ...Fault) error { return f.change(true, faults) }

// AddFault adds a fault after the others.
func (f *Faults) AddFault(fault Fault) error { return f.change(false, []Fault{fault}) }

// ClearFaults makes the server behave.
func (f *Faults) ClearFaults() { _ = f.change(true, nil) }

func (f *Faults) change(replace bool, faults []Fault) error {
	at := f.clock()
	add := make([]*setFault, len(faults))
	for i, fault := range faults {
		if fault.Do == "" {
			fault.Do = Slow
		}
		if err := f.validate(&fault); err != nil {
			return fmt.Errorf("fault %d: %w", i, err)
		}
		add[i] = &setFault{Fault: fault, left: fault.Times}
		if fault.For > 0 {
			add[i].until = at.Add(fault.For)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if replace {
		f.list = nil
	}
	f.list = append(f.list, add...)
	f.some.Store(len(f.list) > 0)
	return nil
}

func (f *Faults) validate(x *Fault) error {
	switch {
	case !slices.Contains(f.steps, x.Step):
		return fmt.Errorf("step %q: want one of %v", x.Step, f.steps)
	case !slices.Contains(actions, x.Do):
		return fmt.Errorf("do %q: want one of %v", x.Do, actions)
	case x.Code != 0 && (x.Code < 200 || x.Code > 599):
		return fmt.Errorf("code %d: want 200 to 599", x.Code)
	case x.Times < 0 || x.For < 0 || x.Delay < 0 || x.RetryAfter < 0:
		return fmt.Errorf("want no negative times or durations")
	case !(x.Probability >= 0 && x.Probability <= 1):
		return fmt.Errorf("probability %v: want 0 to 1", x.Probability)
	}
	return f.check(x)
}

// ListFaults is what is set now: Times and For are what is left of them.
func (f *Faults) ListFaults() []Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expire()
	list := make([]Fault, len(f.list))
	for i, x := range f.list {
		list[i] = x.Fault
		list[i].Times = x.left
		if !x.until.IsZero() {
			list[i].For = x.until.Sub(f.clock())
		}
	}
	return list
}

// expire forgets what is over. Its caller holds mu.
func (f *Faults) expire() {
	at := f.clock()
	f.list = slices.DeleteFunc(f.list, func(x *setFault) bool { return !x.until.IsZero() && !at.Before(x.until) })
	f.some.Store(len(f.list) > 0)
}

// take finds the fault that acts on ev, and counts it.
func (f *Faults) take(ev Event) (Fault, bool) {
	if !f.some.Load() {
		return Fault{}, false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expire()
	for i, x := range f.list {
		if !x.matches(ev) {
			continue
		}
		if x.left == 1 {
			f.list = slices.Delete(f.list, i, i+1)
			f.some.Store(len(f.list) > 0)
		} else if x.left > 1 {
			x.left--
		}
		return x.Fault, true
	}
	return Fault{}, false
}

func (x *Fault) matches(ev Event) bool {
	return x.Step == ev.Step &&
		(x.To == "" || slices.ContainsFunc(ev.To, func(to string) bool { return strings.Contains(to, x.To) })) &&
		(x.Subject == "" || strings.Contains(ev.Subject, x.Subject)) &&
		(x.Match == nil || x.Match(ev)) &&
		(x.Probability == 0 || rand.Float64() < x.Probability)
}

// start is what every action begins with. It returns ctx's error if the server
// closes meanwhile.
func (x *Fault) start(ctx context.Context, ev Event) error {
	if x.Delay > 0 {
		t := time.NewTimer(x.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if x.Hook != nil {
		x.Hook(ev)
	}
	return ctx.Err()
}

func (x *Fault) String() string { return string(x.Step) + ":" + string(x.Do) }
