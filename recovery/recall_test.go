package recovery_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/recovery"
)

// doubtful has doubts, and is told outcomes.
type doubtful struct {
	mu       sync.Mutex
	doubts   []message.Doubt
	recorded map[message.AttemptKey]message.Outcome
}

func (d *doubtful) Silent(_ context.Context, after time.Time, limit int) (open []message.Doubt, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, x := range d.doubts {
		if x.Since.After(after) && len(open) < limit {
			open = append(open, x)
		}
	}
	return open, nil
}

func (d *doubtful) Record(_ context.Context, r message.Report) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.recorded[message.AttemptKey{Position: r.Position, Attempt: r.Attempt}] = r.Outcome
	return nil
}

// Of what the trail tells, only what is certain and of the very attempt resolves a
// doubt. A trail that can't be read is read again; one that was isn't.
func TestRecall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		id := func(n byte) message.ID { return message.ID{0: n, 20: 1} }
		now := time.Now()
		d := &doubtful{recorded: map[message.AttemptKey]message.Outcome{}}
		doubt := func(n byte) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.doubts = append(d.doubts, message.Doubt{
				View:    message.View{Position: message.Position(n), ID: id(n), Attempts: []message.Attempt{{Number: 1, At: now.Add(-time.Hour)}, {Number: 2, At: now.Add(-10 * time.Minute)}}},
				Attempt: 2, Since: time.Now(),
			})
		}
		steps := []message.Step{}
		tell := func(n byte, of message.ID, attempt int, kind message.StepKind, at time.Time) {
			steps = append(steps, message.Step{Position: message.Position(n), ID: of, Attempt: attempt, Kind: kind, At: at})
		}
		const sent, deferred, rejected, unknown, returned = message.StepKind(message.Sent), message.StepKind(message.Deferred), message.StepKind(message.Rejected), message.StepKind(message.Unknown), message.StepKind(message.Returned)
		tell(1, id(1), 1, deferred, now.Add(-time.Hour)) // of the attempt before
		tell(1, id(1), 2, message.StepClaimed, now)
		tell(1, id(1), 2, sent, now)
		tell(2, id(2), 2, rejected, now)
		tell(3, id(3), 2, deferred, now)
		tell(4, id(4), 2, returned, now)
		tell(5, id(5), 2, unknown, now)
		tell(6, id(6), 2, message.StepClaimed, now)
		tell(7, id(70), 2, sent, now)                                         // another message had its place
		tell(8, id(8), 2, returned, now.Add(-time.Hour))                      // another attempt had its number
		tell(9, id(9), 1, sent, now.Add(-time.Hour))                          // of the attempt before
		tell(11, id(11), 2, deferred, now.Add(-10*time.Minute-8*time.Second)) // the number was given again
		tell(12, id(12), 2, deferred, now.Add(-time.Second))
		tell(12, id(12), 2, message.StepClaimed, now)       // and claimed again after it
		tell(10, id(10), 2, deferred, now)                  // of two ends the one by which it may have been taken
		tell(10, id(10), 2, sent, now.Add(-10*time.Second)) // told out of order
		for n := range byte(12) {
			doubt(n + 1)
		}
		reads, broken := 0, true
		var from time.Time
		r := recovery.Recall{Ledger: d, Log: slog.New(slog.DiscardHandler), Trail: func(_ context.Context, since time.Time, use func(message.Step) error) error {
			reads++
			from = since
			for _, s := range steps {
				if err := use(s); err != nil {
					return err
				}
				if broken { // amid reading
					return errors.New("Kafka is away")
				}
			}
			return nil
		}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = r.Run(ctx) }()
		pass := func(d time.Duration) { time.Sleep(d); synctest.Wait() } // of a bubble's time
		pass(5 * time.Second)
		if reads != 1 || len(d.recorded) != 0 {
			t.Errorf("read %d times, recorded %v, of a trail that breaks off", reads, d.recorded)
		}
		broken = false
		pass(time.Minute)
		want := map[byte]message.Outcome{1: message.Sent, 2: message.Rejected, 3: message.Deferred, 4: message.Returned, 10: message.Sent}
		for n := range byte(12) {
			if got := d.recorded[message.AttemptKey{Position: message.Position(n + 1), Attempt: 2}]; got != want[n+1] {
				t.Errorf("%d: recorded as %v, want %v", n+1, got, want[n+1])
			}
		}
		if len(d.recorded) != len(want) || reads != 2 {
			t.Errorf("recorded %d in %d readings, want %d in 2", len(d.recorded), reads, len(want))
		}
		if claimed := now.Add(-10 * time.Minute); from.After(claimed) || from.Before(claimed.Add(-2*time.Minute)) {
			t.Errorf("read from %s, claimed at %s", from, claimed)
		}
		doubt(13)
		tell(13, id(13), 2, sent, now)
		pass(2 * time.Second)
		if reads != 3 || d.recorded[message.AttemptKey{Position: 13, Attempt: 2}] != message.Sent {
			t.Errorf("a new doubt: read %d times, recorded %v", reads, d.recorded)
		}
		cancel()
		<-done
	})
}
