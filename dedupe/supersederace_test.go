package dedupe_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

func TestCancelRacesSupersede(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	tenant := ledgertest.Tenant(t, l, "acme")
	ends := map[message.State]int{}
	for i := range 60 {
		key := fmt.Sprint("code", i)
		s := keyed(t, tenant, key+"old", key)
		if i%2 == 0 {
			s.SendAt = time.Now().Add(30 * time.Minute)
		}
		it := accepted(t, l, s)[0]
		newer := keyed(t, tenant, key+"new", key)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = l.Cancel(t.Context(), tenant, it.ID) })
		wg.Go(func() {
			if _, err := l.Accept(t.Context(), newer); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		claim(t, l, it, message.Taken)
		v, err := l.Message(t.Context(), tenant, it.ID)
		if err != nil || len(v.Attempts) != 1 || !v.DueAt.IsZero() {
			t.Fatalf("%+v %v", v, err)
		}
		ends[v.State]++
	}
	if ends[message.StateCanceled]+ends[message.StateSuperseded] != 60 {
		t.Fatalf("ends: %v", ends)
	}
	t.Logf("ends: %v", ends)
}

// racer is one client of a race. Its moments count what all clients do and see.
type racer struct {
	sub      *message.Submission
	items    []message.Item
	accepted int64   // when the client knew
	claims   []int64 // when each claim that was won had begun
	at       time.Time
}

// No older message is handed over by a claim that began when a newer one's
// acceptance was known, whichever process asks, and for whichever attempt.
func TestSupersedeRacesClaims(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	// All wait for one key's lock, on a machine that may be busy.
	cfg := dedupe.Config{DSN: dsn, Batch: 7, Flushers: 3, Deadline: time.Minute}
	ledgers := []*dedupe.Ledger{ledgertest.OpenWith(t, cfg), ledgertest.OpenWith(t, cfg)}
	tenant := ledgertest.Tenant(t, ledgers[0], "acme")
	var moment atomic.Int64
	racers := make([]*racer, 200)
	var wg sync.WaitGroup
	for i := range racers {
		r := &racer{sub: keyed(t, tenant, fmt.Sprint(i), "code", "a@example.com", "b@example.com")}
		racers[i] = r
		wg.Go(func() {
			l := ledgers[i%2]
			take := func() (message.Receipt, error) { return l.Accept(t.Context(), r.sub) }
			if i%5 == 0 { // out of the journal
				at := time.Now().Add(time.Duration(i-200) * time.Second)
				take = func() (message.Receipt, error) {
					return l.Enter(t.Context(), message.Journaled{Submission: r.sub, AcceptedAt: at})
				}
			}
			receipt, err := take()
			if err != nil {
				t.Error(err)
				return
			}
			r.accepted = moment.Add(1)
			r.items = ledgertest.Items(r.sub, receipt)
			for j, it := range r.items {
				for ; it.Attempt <= 3; it.Attempt++ {
					begun := moment.Add(1)
					c, err := ledgers[(i+j)%2].Claim(t.Context(), it)
					if err != nil {
						t.Error(err)
						return
					}
					if c.Verdict != message.Claimed {
						break
					}
					r.claims = append(r.claims, begun)
					outcome := message.Deferred
					if it.Attempt == 3 {
						outcome = message.Sent
					}
					if err := l.Record(t.Context(), message.Report{Position: it.Position, Attempt: it.Attempt, Provider: "p", Result: message.Result{Outcome: outcome}}); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	l := ledgers[0]
	newest := racers[0]
	for _, r := range racers {
		v, err := l.Message(t.Context(), tenant, r.items[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		r.at = v.AcceptedAt
		if newer(r, newest) {
			newest = r
		}
	}
	states := map[message.State]int{}
	for _, r := range racers {
		for _, it := range r.items {
			v, err := l.Message(t.Context(), tenant, it.ID)
			if err != nil {
				t.Fatal(err)
			}
			states[v.State]++
			switch {
			case r == newest && v.State != message.StateSent:
				t.Errorf("the newest is %s", v.State)
			case v.State != message.StateSent && v.State != message.StateSuperseded:
				t.Errorf("an older one is %s", v.State)
			}
		}
		for _, other := range racers {
			for _, begun := range r.claims {
				if newer(other, r) && other.accepted < begun {
					t.Errorf("%s was claimed at %d, after %s was accepted at %d", r.items[0].ID, begun, other.items[0].ID, other.accepted)
				}
			}
		}
	}
	t.Logf("states: %v", states)
}

func newer(a, b *racer) bool {
	if !a.at.Equal(b.at) {
		return a.at.After(b.at)
	}
	return a.items[0].Position > b.items[0].Position
}

// Batches lock streams, identities and supersede keys, all in order: no two ever
// wait for each other, nor for claims and cancels.
func TestSupersedeKeysDoNotDeadlock(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	var ledgers []*dedupe.Ledger
	for range 6 { // each with a stream of its own: one counter would make them wait their turn
		l, err := dedupe.Open(dedupe.Config{DSN: dsn, Batch: 25, Flushers: 1, MaxConns: 5, Deadline: 30 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ledgers = append(ledgers, l)
	}
	tenant := ledgertest.Tenant(t, ledgers[0], "acme")
	var wg sync.WaitGroup
	for w := range 60 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(w)))
			for i := range 25 {
				// Half of the keys are met in each of two orders, with
				// idempotency keys, some of them twice, in another.
				key := fmt.Sprint("code", (i+w)%12)
				if w%2 == 0 {
					key = fmt.Sprint("code", 11-(i+w)%12)
				}
				s := keyed(t, tenant, fmt.Sprint(rnd.IntN(3000)), key)
				s.Content = fmt.Appendf(nil, "%d", i)
				at := w % len(ledgers)
				s.Stream, s.Print = fmt.Sprint("s", at), message.FingerprintOf(nil)
				s.Lane.Class = message.Class(1 + rnd.IntN(3))
				var receipt message.Receipt
				var err error
				if rnd.IntN(4) == 0 {
					receipt, err = ledgers[at].Enter(t.Context(), message.Journaled{Submission: s, AcceptedAt: time.Now().Add(-time.Duration(rnd.IntN(5)) * time.Second)})
				} else {
					receipt, err = ledgers[at].Accept(t.Context(), s)
				}
				if err != nil {
					t.Error(err)
					return
				}
				it := ledgertest.Items(s, receipt)[0]
				if rnd.IntN(3) == 0 {
					_, _ = ledgers[rnd.IntN(6)].Cancel(t.Context(), tenant, it.ID)
				} else if _, err := ledgers[rnd.IntN(6)].Claim(t.Context(), it); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	// A connection tells what it met when it ends.
	for _, l := range ledgers {
		l.Close()
	}
	for deadline := time.Now().Add(10 * time.Second); count(t, dsn, `select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()`) > 0; {
		if time.Now().After(deadline) {
			t.Fatal("connections are left")
		}
	}
	if n := count(t, dsn, `select deadlocks::int from pg_stat_database where datname = current_database()`); n != 0 {
		t.Errorf("%d deadlocks", n)
	}
	if n := count(t, dsn, `select count(*)::int from superseded`); n == 0 {
		t.Error("nothing was superseded")
	}
	// Of each key nothing can still be claimed but the newest.
	if n := count(t, dsn, `select count(*)::int from message_state m where m.state in ('queued', 'waiting') and not exists (select from newest k where k.n = m.n)`); n != 0 {
		t.Errorf("%d older ones can still be claimed", n)
	}
}
