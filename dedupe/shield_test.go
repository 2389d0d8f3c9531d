package dedupe_test

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

// keyless is a submission without a key, which counts as a repeat of what was
// accepted in the last hour.
func keyless(t testing.TB, tenant int32, text string, to ...string) *message.Submission {
	t.Helper()
	c := &message.Content{Email: &message.Email{From: "app@example.com", To: to, Subject: "Hello", Text: text}}
	s, err := message.SubmitKeyless(tenant, false, c, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s.RepeatsSince = time.Now().Add(-time.Hour)
	return s
}

func suppressing(t *testing.T, l *dedupe.Ledger, tenant string) int32 {
	t.Helper()
	id := ledgertest.Tenant(t, l, tenant)
	if err := l.SetRepeats(t.Context(), tenant, "suppress"); err != nil {
		t.Fatal(err)
	}
	return id
}

// TestRepeatIsSuppressed: a repeat has the first one's answer and no message of
// its own; other content, another tenant, or one from before is no repeat.
func TestRepeatIsSuppressed(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	acme, other := suppressing(t, l, "acme"), suppressing(t, l, "other")
	first := keyless(t, acme, "a", "a@example.com", "b@example.com")
	first.RepeatsSince = time.Time{} // before the incident
	was := accept(t, l, first)
	again := keyless(t, acme, "a", "a@example.com", "b@example.com")
	r := accept(t, l, again)
	if !slices.Equal(r.States, []message.State{message.StateQueued, message.StateQueued}) {
		t.Errorf("states: %v", r.States)
	}
	if !r.Replayed || r.RepeatOf != first.ID() || r.Submission != was.Submission || r.Sequence != was.Sequence || again.ID() == first.ID() {
		t.Errorf("%+v, want %+v of %s", r, was, first.ID())
	}
	for what, s := range map[string]*message.Submission{
		"other content": keyless(t, acme, "b", "a@example.com", "b@example.com"), "fewer recipients": keyless(t, acme, "a", "a@example.com"),
		"another tenant": keyless(t, other, "a", "a@example.com", "b@example.com"),
	} {
		if r := accept(t, l, s); r.Replayed || r.RepeatOf != (message.ID{}) {
			t.Errorf("%s: %+v", what, r)
		}
	}
	late := keyless(t, acme, "a", "a@example.com", "b@example.com")
	late.RepeatsSince = time.Now()
	if r := accept(t, l, late); r.Replayed {
		t.Errorf("a repeat of what is older: %+v", r)
	}
	if n := count(t, dsn, `select count(*) from message`); n != 2+2+1+2+2 {
		t.Errorf("%d messages", n)
	}
	// The same submission, tried again since its answer was lost, is itself.
	if r := accept(t, l, late); !r.Replayed || r.RepeatOf != (message.ID{}) {
		t.Errorf("tried again: %+v", r)
	}
}

// TestRepeatsAtOnce: of many at once, in two processes, one is the first.
func TestRepeatsAtOnce(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	ledgers := []*dedupe.Ledger{ledgertest.Open(t, dsn), ledgertest.Open(t, dsn)}
	acme := suppressing(t, ledgers[0], "acme")
	var all sync.WaitGroup
	for i := range 100 {
		s := keyless(t, acme, "a", "a@example.com")
		all.Go(func() {
			if _, err := ledgers[i%2].Accept(t.Context(), s); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := count(t, dsn, `select count(*) from message`); n != 1 {
		t.Errorf("%d messages", n)
	}
}

// TestRepeatOfWhatIsOver: what was never sent, and never will be, hides nothing.
func TestRepeatOfWhatIsOver(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	acme := suppressing(t, l, "acme")
	first := keyless(t, acme, "a", "a@example.com")
	items := ledgertest.Items(first, accept(t, l, first))
	if _, err := l.Cancel(t.Context(), acme, items[0].ID); err != nil {
		t.Fatal(err)
	}
	second := keyless(t, acme, "a", "a@example.com")
	if r := accept(t, l, second); r.Replayed {
		t.Fatalf("a canceled one hides it: %+v", r)
	}
	if r := accept(t, l, keyless(t, acme, "a", "a@example.com")); r.RepeatOf != second.ID() {
		t.Errorf("%+v, want a repeat of the second", r)
	}
	gone := keyless(t, acme, "b", "b@example.com")
	gone.ExpiresAt = time.Now().Add(50 * time.Millisecond)
	accept(t, l, gone)
	time.Sleep(time.Until(gone.ExpiresAt.Add(20 * time.Millisecond)))
	if r := accept(t, l, keyless(t, acme, "b", "b@example.com")); r.Replayed {
		t.Errorf("an expired one hides it: %+v", r)
	}
}

// TestRepeatIsFlagged: by default a repeat is a message like any other, and says
// whose content it has; with off it doesn't.
func TestRepeatIsFlagged(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	acme := ledgertest.Tenant(t, l, "acme")
	first := keyless(t, acme, "a", "a@example.com")
	accept(t, l, first)
	again := keyless(t, acme, "a", "a@example.com")
	r := accept(t, l, again)
	if r.Replayed || r.RepeatOf != first.ID() {
		t.Fatalf("%+v", r)
	}
	if v := state(t, l, ledgertest.Items(again, r)[0], message.StateQueued); v.RepeatOf != first.ID() {
		t.Errorf("repeat of %s", v.RepeatOf)
	}
	if err := l.SetRepeats(t.Context(), "acme", "off"); err != nil {
		t.Fatal(err)
	}
	if r := accept(t, l, keyless(t, acme, "a", "a@example.com")); r.RepeatOf != (message.ID{}) {
		t.Errorf("off: %+v", r)
	}
	for _, bad := range [][2]string{{"acme", "perhaps"}, {"nobody", "off"}} {
		var wrong message.FieldErrors
		if err := l.SetRepeats(t.Context(), bad[0], bad[1]); !errors.As(err, &wrong) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// TestJournaledRepeat: it was answered with an id of its own, which ends as
// canceled and is numbered as all are; also of two that the journal has.
func TestJournaledRepeat(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	acme := suppressing(t, l, "acme")
	enter := func(s *message.Submission) message.Receipt {
		t.Helper()
		r, err := l.Enter(context.WithoutCancel(t.Context()), message.Journaled{Submission: s, AcceptedAt: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first := keyless(t, acme, "a", "a@example.com")
	if r := enter(first); r.Ended {
		t.Fatalf("%+v", r)
	}
	again := keyless(t, acme, "a", "a@example.com")
	r := enter(again)
	if !r.Ended || r.Replayed || r.RepeatOf != first.ID() || r.Sequence != 2 {
		t.Fatalf("%+v", r)
	}
	item := ledgertest.Items(again, r)[0]
	v := state(t, l, item, message.StateCanceled)
	if v.RepeatOf != first.ID() || !strings.Contains(v.Reason, first.ID().String()) {
		t.Errorf("%s, %q", v.RepeatOf, v.Reason)
	}
	claim(t, l, item, message.Taken)
	if r := enter(again); !r.Replayed {
		t.Errorf("entered again: %+v", r)
	}
}

// TestSuppressedSupersedesNobody: what ends as a repeat stands in for nobody,
// whichever of the two came first at the door.
func TestSuppressedSupersedesNobody(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	acme := suppressing(t, l, "acme")
	for _, earlier := range []bool{false, true} {
		text := map[bool]string{false: "a", true: "b"}[earlier]
		made := func() *message.Submission {
			s := keyless(t, acme, text, "a@example.com")
			s.Supersede = "code-" + text
			return s
		}
		journaled := message.Journaled{Submission: made(), AcceptedAt: time.Now()}
		first := made()
		item := accepted(t, l, first)[0]
		if !earlier {
			journaled = message.Journaled{Submission: made(), AcceptedAt: time.Now()}
		}
		r, err := l.Enter(t.Context(), journaled)
		if err != nil || !r.Ended || r.RepeatOf != first.ID() {
			t.Fatalf("%+v, %v", r, err)
		}
		state(t, l, ledgertest.Items(journaled.Submission, r)[0], message.StateCanceled)
		state(t, l, item, message.StateQueued)
		claim(t, l, item, message.Claimed)
	}
}

// TestTheFirstIsFoundAmongMany: of many equal ones that are over, it is the one
// that lives.
func TestTheFirstIsFoundAmongMany(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	acme := suppressing(t, l, "acme")
	first := keyless(t, acme, "a", "a@example.com")
	accept(t, l, first)
	var all sync.WaitGroup
	for range 400 {
		j := message.Journaled{Submission: keyless(t, acme, "a", "a@example.com"), AcceptedAt: time.Now().Add(time.Second)}
		binary.BigEndian.PutUint32(j.Key[6:], uint32(time.Now().Unix()+1)) // they came later
		all.Go(func() {
			if r, err := l.Enter(t.Context(), j); err != nil || !r.Ended {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
	all.Wait()
	if r := accept(t, l, keyless(t, acme, "a", "a@example.com")); r.RepeatOf != first.ID() {
		t.Errorf("%+v", r)
	}
}
