package ingest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// kafka is a journal that answers as it is told.
type kafka struct {
	err   error
	late  []message.Journaled // that others wrote, and that it will have read when it is current
	stuck bool                // it never is
	at    time.Time           // for which it was asked to be
	got   []message.Journaled
	blind bool
}

func (k *kafka) Find(id message.ID) (*message.Journaled, bool) {
	for i := range k.got {
		if k.got[i].ID() == id.Submission() {
			return &k.got[i], true
		}
	}
	return nil, !k.blind
}

func (k *kafka) Current(ctx context.Context, at time.Time) error {
	k.at = at
	if k.stuck {
		<-ctx.Done()
		return ctx.Err()
	}
	k.got = append(k.got, k.late...)
	k.late = nil
	return nil
}

func (k *kafka) Append(_ context.Context, j message.Journaled) error {
	k.got = append(k.got, j)
	return k.err
}

// deaf is a ledger that never answers.
type deaf struct {
	ledger
	asked int
}

func (d *deaf) Accept(ctx context.Context, _ *message.Submission) (message.Receipt, error) {
	d.asked++
	<-ctx.Done()
	return message.Receipt{}, fmt.Errorf("%w: %w", message.ErrUnavailable, ctx.Err())
}

func submit(s *Service, key string) (*Accepted, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return s.Submit(ctx, Request{Principal: owner, Key: key, Content: email(), Trace: "trace"})
}

// What a journal has, and the ledger hasn't yet, keeps its place among those of its
// supersede key when it is submitted again: it is in the journal once, with its
// first time. Once the ledger has it, or where no journal can be read, the ledger
// answers.
func TestSupersedingKeepsItsPlace(t *testing.T) {
	l, k := &ledger{err: message.ErrUnavailable}, &kafka{}
	at := now
	s := l.service(func(c *Config) { c.Journal, c.Now = k, func() time.Time { return at } })
	content := email()
	content.Email.SupersedeKey = "code"
	submit := func(want message.State, asked int) {
		t.Helper()
		at = at.Add(time.Minute)
		a, err := s.Submit(context.Background(), Request{Principal: owner, Key: "k", Content: content})
		if err != nil {
			t.Fatal(err)
		}
		if a.Messages[0].State != want || len(l.got) != asked {
			t.Errorf("%s, and the ledger was asked %d times; want %s, %d", a.Messages[0].State, len(l.got), want, asked)
		}
	}
	submit(message.StateJournaled, 1)
	first := k.got
	submit(message.StateJournaled, 1) // with the ledger away still
	l.err = nil
	submit(message.StateJournaled, 1)
	// Another process journaled it, and this one has yet to read that.
	k.got, k.late = nil, first
	submit(message.StateJournaled, 1)
	if len(k.got) != 1 || !k.got[0].AcceptedAt.Equal(now.Add(time.Minute)) || !k.at.Equal(at.Add(-sightAge)) {
		t.Errorf("journaled: %+v, and all until %s was asked for", k.got, k.at)
	}
	l.found.Items = make([]message.View, 2) // it was entered
	submit(message.StateQueued, 2)
	k.got, k.stuck, l.found.Items = nil, true, nil
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if submit(message.StateQueued, 3); time.Since(began) != sightLimit {
			t.Errorf("a journal that can't be read held it up for %s", time.Since(began))
		}
	})
}

func TestJournaled(t *testing.T) {
	l, k := &ledger{err: message.ErrUnavailable}, &kafka{}
	s := l.service(func(c *Config) { c.Journal = k })
	a, err := submit(s, "k")
	if err != nil {
		t.Fatal(err)
	}
	j := k.got[0]
	if len(k.got) != 1 || !j.AcceptedAt.Equal(now) || j.Key != message.HashKey(7, "k") || j.Trace != "trace" {
		t.Errorf("journaled: %+v", k.got)
	}
	for i, m := range a.Messages {
		if want := (Message{j.ID().Message(i), j.Recipients[i], message.StateJournaled, "default", 0}); m != want {
			t.Errorf("message %+v, want %+v", m, want)
		}
	}
	if len(a.Messages) != 2 || a.Replayed || len(l.items) != 0 {
		t.Errorf("%+v; published: %d", a, len(l.items))
	}
	k.err = message.ErrUnavailable
	if _, err := submit(s, "k2"); !errors.Is(err, message.ErrUnavailable) {
		t.Errorf("both away: %v", err)
	}
}

// While no journal can take it the ledger has the request's time, not only its
// patience: to give it up would be to refuse what it takes in a moment.
func TestPatienceWithoutAJournal(t *testing.T) {
	for _, away := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			d := &deaf{}
			began := time.Now()
			s := New(d, d, Config{Journal: &kafka{err: message.ErrUnavailable}, JournalAway: func() bool { return away }, Patience: 2 * time.Second})
			if _, err := submit(s, "k"); !errors.Is(err, message.ErrUnavailable) {
				t.Error(err)
			}
			if took := time.Since(began); away != (took >= 9*time.Second) || !away && took != 2*time.Second {
				t.Errorf("away %v: given up after %s", away, took)
			}
		})
	}
}

// What the ledger has judged is not the journal's.
func TestNotJournaled(t *testing.T) {
	for _, refused := range []error{message.ErrKeyReused, errors.New("a row at fault"), nil} {
		l, k := &ledger{err: refused}, &kafka{}
		if _, err := submit(l.service(func(c *Config) { c.Journal = k }), "k"); !errors.Is(err, refused) || len(k.got) != 0 {
			t.Errorf("%v: %v, journaled %d", refused, err, len(k.got))
		}
	}
}

// After some failures the ledger is left alone but for one try a second; when
// one succeeds, it has all again.
func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, k := &ledger{err: message.ErrUnavailable}, &kafka{}
		s := l.service(func(c *Config) { c.Journal, c.Now = k, time.Now })
		content := func() {
			t.Helper()
			if _, err := submit(s, "k"); err != nil {
				t.Fatal(err)
			}
		}
		for range 10 {
			content()
		}
		if len(l.got) != breakAfter || len(k.got) != 10 {
			t.Errorf("the ledger was tried %d times, %d journaled", len(l.got), len(k.got))
		}
		time.Sleep(probeEvery)
		content()
		content()
		if len(l.got) != breakAfter+1 {
			t.Errorf("the ledger was tried %d times, want one more", len(l.got))
		}
		l.err = nil
		time.Sleep(probeEvery)
		content()
		content()
		if len(l.got) != breakAfter+3 || len(k.got) != 12 {
			t.Errorf("the ledger is back: tried %d times, %d journaled", len(l.got), len(k.got))
		}
	})
}

// A stream without numbers goes to the journal; the others have the ledger.
func TestNumberingDoesNotBreak(t *testing.T) {
	l, k := &ledger{err: fmt.Errorf("%w: %w", message.ErrUnavailable, message.ErrNumbering)}, &kafka{}
	s := l.service(func(c *Config) { c.Journal = k })
	for range 10 {
		if _, err := submit(s, "k"); err != nil {
			t.Fatal(err)
		}
	}
	if len(l.got) != 10 || len(k.got) != 10 {
		t.Errorf("tried %d, journaled %d", len(l.got), len(k.got))
	}
}

// A ledger that hangs costs the first ones its patience, and the later ones
// nothing; and it never takes the journal's half of a request.
func TestHungLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, k := &deaf{}, &kafka{}
		s := New(d, d, Config{Journal: k, Now: time.Now})
		for i := range 20 {
			began := time.Now()
			if _, err := submit(s, "k"); err != nil {
				t.Fatal(err)
			}
			want := time.Duration(0)
			if i < breakAfter {
				want = 2 * time.Second
			}
			if took := time.Since(began); took != want {
				t.Errorf("request %d took %s, want %s", i, took, want)
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s = New(d, d, Config{Journal: k, Now: time.Now})
		began := time.Now()
		if _, err := s.Submit(ctx, Request{Principal: owner, Content: email()}); err != nil || time.Since(began) != 500*time.Millisecond {
			t.Errorf("a second's request: %v after %s", err, time.Since(began))
		}
	})
}

// A ledger that was given up may take a request late: for newer than what comes
// after the answer, unless that waits. Only supersede keys need it.
func TestSupersedingOutlastsTheLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, k := &ledger{err: message.ErrUnavailable}, &kafka{}
		s := l.service(func(c *Config) {
			c.Journal, c.LedgerTime = k, func(t time.Time) (time.Time, bool) { return t.Add(time.Hour), true }
		})
		for i := range 2 * (breakAfter + 1) { // also once it isn't asked any more: another process may have asked it
			key, least := "", time.Duration(0)
			if i%2 == 1 {
				key, least = "code", 2*message.AcceptSlack
			}
			content := email()
			content.Email.SupersedeKey = key
			began := time.Now()
			a, err := s.Submit(t.Context(), Request{Principal: owner, Key: fmt.Sprint(i), Content: content})
			if took := time.Since(began); err != nil || a.Messages[0].State != message.StateJournaled || took < least || took > least+100*time.Millisecond {
				t.Errorf("%q: after %v: %+v %v", key, took, a, err)
			}
			want := now // the order under a key is by the ledger's clock
			if key != "" {
				want = now.Add(time.Hour)
			}
			if at := k.got[len(k.got)-1].AcceptedAt; !at.Equal(want) {
				t.Errorf("%q: journaled as accepted at %v, want %v", key, at, want)
			}
		}
		if len(l.got) != breakAfter {
			t.Errorf("the ledger was asked %d times, want %d", len(l.got), breakAfter)
		}
	})
}

// Those who wait when the breaker opens wait no longer.
func TestBreakerEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(time.Minute, time.Now, func(bool, error) {})
		waiting := b.enter()
		for range breakAfter {
			b.enter().leave(message.ErrUnavailable)
		}
		select {
		case <-waiting.ctx.Done():
		default:
			t.Error("it waits on")
		}
	})
}

// A request that expired since the journal took it gets that answer again.
func TestRepeatOfAJournaledOneThatExpired(t *testing.T) {
	l, k := &ledger{err: message.ErrUnavailable}, &kafka{}
	at := now
	s := l.service(func(c *Config) { c.Journal, c.Now = k, func() time.Time { return at } })
	content := email()
	content.Email.ExpiresAt = now.Add(time.Minute)
	r := Request{Principal: owner, Key: "k", Content: content}
	first, err := s.Submit(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	at = now.Add(time.Hour)
	for _, l.findErr = range []error{nil, message.ErrUnavailable} {
		again, err := s.Submit(context.Background(), r)
		if err != nil || !again.Replayed || again.ID != first.ID || again.Messages[0] != first.Messages[0] {
			t.Errorf("again: %+v %v", again, err)
		}
	}
	// Another process journaled it, and this one has yet to read that.
	k.got, k.late, l.findErr = nil, k.got, nil
	if again, err := s.Submit(context.Background(), r); err != nil || !again.Replayed || again.ID != first.ID {
		t.Errorf("while another's journal is read: %+v %v", again, err)
	}
	if want := content.Email.ExpiresAt.Add(15 * time.Second); !k.at.Equal(want) {
		t.Errorf("all until %v was asked for, want %v: a request that was under way at its end", k.at, want)
	}
	k.stuck, k.got = true, nil
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if _, err := s.Submit(context.Background(), r); !errors.Is(err, message.ErrUnavailable) || time.Since(began) != currentLimit {
			t.Errorf("while the journal can't be read: after %v: %v", time.Since(began), err)
		}
	})
	k.stuck = false
	r.Key, l.findErr = "another", nil
	var wrong message.FieldErrors
	if _, err := s.Submit(context.Background(), r); !errors.As(err, &wrong) {
		t.Errorf("one that was never kept: %v", err)
	}
	k.blind = true
	if _, err := s.Submit(context.Background(), r); !errors.Is(err, message.ErrUnavailable) {
		t.Errorf("with a journal that can't tell: %v", err)
	}
}
