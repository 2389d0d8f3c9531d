package recovery

import (
	"context"
	"errors"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// ledger answers as it is told, one answer for each try; the last one stays.
type ledger struct {
	mu      sync.Mutex
	answers []error
	receipt message.Receipt
	entered []message.Journaled
	parked  []message.Parked
	items   []message.Item
}

func (l *ledger) Enter(_ context.Context, j message.Journaled) (message.Receipt, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	if len(l.answers) > 0 {
		if err = l.answers[0]; len(l.answers) > 1 {
			l.answers = l.answers[1:]
		}
	}
	if err == nil {
		l.entered = append(l.entered, j)
	}
	return l.receipt, err
}

func (l *ledger) ParkWhole(_ context.Context, p message.Parked) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.parked = append(l.parked, p)
	return nil
}

func (l *ledger) Publish(items []message.Item) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.items = append(l.items, items...)
}

func none(context.Context) (left, done map[message.Class]int64, err error) { return nil, nil, nil }

func drain(t *testing.T, l *ledger, backlog Backlog) *Drain {
	t.Helper()
	d, err := NewDrain(DrainConfig{Ledger: l, Publisher: l, Backlog: backlog})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func record(t *testing.T, class string) message.Journaled {
	t.Helper()
	c := &message.Content{Email: &message.Email{From: "a@example.com", To: []string{"b@example.net"}, Text: "t", Options: message.Options{Class: class}}}
	s, err := message.Submit(1, "k", c, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return message.Journaled{Submission: s, AcceptedAt: time.Now()}
}

// A record is finished when the ledger has it and not before, however long that
// takes; then it is published, unless it is held, waits, or has ended as a repeat. So is one that
// the ledger has already, if it isn't old: its door gave it up.
func TestEnter(t *testing.T) {
	repeated := message.SubmissionID(message.KeyHash{1}, message.Fingerprint{})
	for name, test := range map[string]struct {
		answers   []error
		receipt   message.Receipt
		published int
		parked    int
	}{
		"fresh":     {nil, message.Receipt{Submission: 1}, 1, 0},
		"later":     {[]error{message.ErrUnavailable, message.ErrUnavailable, nil}, message.Receipt{Submission: 1}, 1, 0},
		"held":      {nil, message.Receipt{Submission: 1, Held: true}, 0, 0},
		"scheduled": {nil, message.Receipt{Submission: 1, Waiting: true}, 0, 0},
		"known":     {nil, message.Receipt{Submission: 1, Replayed: true}, 1, 0},
		"deferred":  {nil, message.Receipt{Submission: 1, Replayed: true, Waiting: true}, 0, 0},
		"repeat":    {nil, message.Receipt{Submission: 1, Ended: true, RepeatOf: repeated}, 0, 0},
		"flagged":   {nil, message.Receipt{Submission: 1, RepeatOf: repeated}, 1, 0},
		"refused":   {[]error{errors.New("bad row")}, message.Receipt{}, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &ledger{answers: test.answers, receipt: test.receipt}
				d := drain(t, l, none)
				finished := 0
				first := record(t, "")
				d.Enter(t.Context(), first, "topic/0/1", []byte("raw"), func() { finished++ })
				d.Wait()
				if test.receipt.Replayed { // and long ago: a journal that is read again from its beginning
					j := record(t, "")
					j.AcceptedAt = j.AcceptedAt.Add(-2 * publishLate)
					d.Enter(t.Context(), j, "topic/0/2", []byte("raw"), func() {})
					d.Wait()
				}
				if finished != 1 || len(l.items) != test.published || len(l.parked) != test.parked {
					t.Errorf("finished %d, published %d, parked %v", finished, len(l.items), l.parked)
				}
				if test.parked == 0 {
					return
				}
				// Whoever asks for one of its ids is to be told of it.
				want := message.Parked{
					Source: "topic/0/1", Raw: []byte("raw"), Reason: "bad row",
					ID: first.ID(), Tenant: 1, Lane: first.Lane, Recipients: 1, AcceptedAt: first.AcceptedAt,
				}
				if got := l.parked[0]; !reflect.DeepEqual(got, want) {
					t.Errorf("parked %+v, want %+v", got, want)
				}
			})
		})
	}
}

// With the ledger away nothing is finished; when ownership ends, it is left.
func TestEnterEndsWithOwnership(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := drain(t, &ledger{answers: []error{message.ErrUnavailable}}, none)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for range 2 * atOnce { // more than there are slots: they share them between tries
			d.Enter(ctx, record(t, ""), "s", nil, func() { t.Error("finished") })
		}
		d.Wait()
	})
}

// A lower class waits while a higher one has a backlog that moves.
func TestUrgentFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		left := map[message.Class]int64{message.Transactional: 100}
		done := map[message.Class]int64{}
		l := &ledger{receipt: message.Receipt{Submission: 1}}
		d := drain(t, l, func(context.Context) (map[message.Class]int64, map[message.Class]int64, error) {
			mu.Lock()
			defer mu.Unlock()
			if left[message.Transactional] > 0 {
				done[message.Transactional]++
			}
			copied := map[message.Class]int64{message.Transactional: done[message.Transactional]}
			return map[message.Class]int64{message.Transactional: left[message.Transactional]}, copied, nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = d.Run(ctx) })
		synctest.Wait()
		campaign := false
		wg.Go(func() { d.Enter(ctx, record(t, "campaign"), "s", nil, func() { campaign = true }) })
		urgent := false
		d.Enter(ctx, record(t, "transactional"), "s", nil, func() { urgent = true })
		time.Sleep(time.Minute)
		synctest.Wait()
		if !urgent || campaign {
			t.Errorf("transactional entered: %v, campaign: %v", urgent, campaign)
		}
		mu.Lock()
		left[message.Transactional] = 0
		mu.Unlock()
		time.Sleep(2 * backlogEvery)
		synctest.Wait()
		if !campaign {
			t.Error("campaign still waits, and nothing is before it")
		}
		cancel()
		wg.Wait()
		d.Wait()
	})
}

// What a class gets all the time, and is gone at once, holds up nobody.
func TestTrickleHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var done int64
		d := drain(t, &ledger{receipt: message.Receipt{Submission: 1}}, func(context.Context) (map[message.Class]int64, map[message.Class]int64, error) {
			done += 10
			return map[message.Class]int64{message.Transactional: 6}, map[message.Class]int64{message.Transactional: done}, nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = d.Run(ctx) })
		synctest.Wait()
		for range 10 {
			began := time.Now()
			d.Enter(ctx, record(t, "campaign"), "s", nil, func() {})
			if took := time.Since(began); took > 2*backlogEvery {
				t.Errorf("it waited %s", took)
			}
			time.Sleep(backlogEvery)
		}
		cancel()
		wg.Wait()
		d.Wait()
	})
}

// A backlog that doesn't move holds up nobody for long.
func TestStuckClassHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := drain(t, &ledger{receipt: message.Receipt{Submission: 1}}, func(context.Context) (map[message.Class]int64, map[message.Class]int64, error) {
			return map[message.Class]int64{message.Transactional: 1}, map[message.Class]int64{message.Transactional: 5}, nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = d.Run(ctx) })
		synctest.Wait()
		began := time.Now()
		d.Enter(ctx, record(t, "trigger"), "s", nil, func() {})
		if took := time.Since(began); took < yieldAtMost/2 || took > 2*yieldAtMost {
			t.Errorf("it waited %s", took)
		}
		cancel()
		wg.Wait()
		d.Wait()
	})
}
