package dedupe_test

import (
	"errors"
	"fmt"
	"maps"
	"testing"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

// A stream of any size is audited in parts, each after a bounded time, and the
// parts together are what the whole is.
func TestAuditInParts(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	l.SetPatience(0) // a window for each answer
	tenant := ledgertest.Tenant(t, l, "acme")
	accept(t, l, ledgertest.Email(t, tenant, "k", "s", "a@example.com"))
	const last = 50_000
	lane := message.Lanes()[0].Code()
	exec(t, dsn, fmt.Sprintf(`insert into message select %d::bigint << 57 | (i << 6), stream, i, tenant, test, id, recipient, accepted_at, expires_at, trace
		from message, generate_series(2::bigint, %d) i`, lane, last))
	exec(t, dsn, fmt.Sprintf(`update counter set last = %d`, last))
	exec(t, dsn, `analyze`) // which believes now, for a while, that nothing was ever attempted
	exec(t, dsn, `insert into attempt select n, 1, 1, 0, 0, now() from message where seq % 2 = 0`)
	exec(t, dsn, `insert into outcome (n, no, kind, at) select n, 1, 1, now() from attempt`)
	// One gap goes over the first window's edge.
	exec(t, dsn, `delete from message where seq between 19999 and 20003 or seq in (7, 50000)`)

	var missing []message.Range
	states := map[message.State]int64{}
	parts := 0
	for from := int64(0); ; parts++ {
		a, err := l.AuditPart(t.Context(), tenant, "s", message.Range{From: from})
		if err != nil {
			t.Fatal(err)
		}
		if a.First != 1 || a.Last != last || a.From != max(1, from) || a.Next != 0 && a.Next != a.To+1 {
			t.Fatalf("part %d: %+v", parts, a)
		}
		missing = append(missing, a.Missing...)
		for s, n := range a.States {
			states[s] += n
		}
		if from = a.Next; from == 0 {
			break
		}
	}
	want := []message.Range{{From: 7, To: 7}, {From: 19999, To: 20000}, {From: 20001, To: 20003}, {From: 50000, To: 50000}}
	if parts < 2 || fmt.Sprint(missing) != fmt.Sprint(want) {
		t.Errorf("%d parts find missing %v, want %v", parts+1, missing, want)
	}
	if states[message.StateSent] != 24_997 || states[message.StateQueued] != 24_996 || len(states) != 2 {
		t.Errorf("states %v", states)
	}
	whole, err := l.Audit(t.Context(), tenant, "s")
	if err != nil || whole.Next != 0 || whole.To != last || !maps.Equal(whole.States, states) {
		t.Errorf("the whole: %+v %v", whole, err)
	}
	some, err := l.AuditPart(t.Context(), tenant, "s", message.Range{From: 3, To: 9})
	if err != nil || some.From != 3 || some.To != 9 || some.Next != 0 || fmt.Sprint(some.Missing) != fmt.Sprint(want[:1]) || some.States[message.StateSent] != 3 {
		t.Errorf("3 to 9: %+v %v", some, err)
	}
}

// everyState is a ledger with messages in every state.
func everyState(t *testing.T) (*dedupe.Ledger, string, map[message.State][]message.Item) {
	t.Helper()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	items := make([]message.Item, 20)
	for i, key := range ledgertest.Keys(len(items)) {
		s := ledgertest.Email(t, tenant, key, "s", "a@example.com")
		items[i] = ledgertest.Items(s, accept(t, l, s))[0]
	}
	next := func() message.Item {
		it := items[0]
		items = items[1:]
		return it
	}
	all := map[message.State][]message.Item{}
	ended := func(state message.State, o message.Outcome, d message.Decision) {
		it := next()
		claim(t, l, it, message.Claimed)
		if o != 0 {
			record(t, l, it, o, 0)
		}
		if d != "" {
			if err := l.Decide(t.Context(), it.ID, 0, d, "ops", "r"); err != nil {
				t.Fatal(err)
			}
		}
		all[state] = append(all[state], it)
	}
	ended(message.StateSent, message.Sent, "")
	ended(message.StateFailed, message.Rejected, "")
	ended(message.StateWaiting, message.Deferred, "")
	ended(message.StateWaiting, message.Returned, "")
	ended(message.StateInDoubt, message.Unknown, "")
	ended(message.StateSent, message.Unknown, message.DecideSent)
	ended(message.StateFailed, message.Unknown, message.DecideDrop)
	ended(message.StateWaiting, message.Unknown, message.DecideResend)
	// The tests' ledgers give their attempts up; this one's is listed.
	it := next()
	claim(t, l, it, message.Claimed)
	exec(t, dsn, `update process set give_up = '1 hour'`)
	all[message.StateSending] = append(all[message.StateSending], it)
	it = next()
	if _, err := l.Cancel(t.Context(), 0, it.ID); err != nil {
		t.Fatal(err)
	}
	all[message.StateCanceled] = append(all[message.StateCanceled], it)
	it = next()
	exec(t, dsn, `update message set expires_at = now() where n = $1`, int64(it.Position))
	claim(t, l, it, message.Expired)
	all[message.StateExpired] = append(all[message.StateExpired], it)
	it = next()
	claim(t, l, it, message.Claimed)
	if err := l.Hold(t.Context(), message.AttemptKey{Position: it.Position, Attempt: 1}, "poison"); err != nil {
		t.Fatal(err)
	}
	all[message.StateHeld] = append(all[message.StateHeld], it)
	it = next()
	exec(t, dsn, `insert into attempt values ($1, 1, 4, 0, 0, now())`, int64(it.Position))
	all[message.StateSuperseded] = append(all[message.StateSuperseded], it)
	all[message.StateQueued] = items
	return l, dsn, all
}

func auditLanes(t *testing.T, l *dedupe.Ledger) message.LaneAudit {
	t.Helper()
	var counted, expected int64
	all, err := l.AuditLanes(t.Context(), message.Lanes(), func(done, total int64) { counted, expected = done, total })
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != len(message.Lanes()) || expected != all[0].Accepted || counted == 0 {
		t.Fatalf("%d lanes, progress %d of %d", len(all), counted, expected)
	}
	for _, other := range all[1:] {
		if other.Accepted != 0 || !other.AddsUp() {
			t.Errorf("%s: %+v", other.Lane, other)
		}
	}
	return all[0]
}

func TestAuditOfLanesAddsUp(t *testing.T) {
	t.Parallel()
	l, _, want := everyState(t)
	a := auditLanes(t, l)
	for state, items := range want {
		if a.States[state] != int64(len(items)) {
			t.Errorf("%s: %d, want %d", state, a.States[state], len(items))
		}
		for _, it := range items {
			if v, err := l.Message(t.Context(), 0, it.ID); err != nil || v.State != state {
				t.Errorf("the message is %s, want %s: %v", v.State, state, err)
			}
		}
	}
	if a.Accepted != 20 || a.Counted() != 20 || len(a.States) != len(want) || !a.AddsUp() {
		t.Errorf("audit: %+v", a)
	}
}

// Whatever breaks the third invariant, or takes a message away, shows.
func TestAuditOfLanesFindsWhatIsLost(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		harm string
		lost int64
	}{
		"a message is gone":           {`delete from message where n = (select max(n) from message)`, 0},
		"a leave is gone":             {`delete from waiting where n = (select min(n) from waiting)`, 1},
		"the leave is another's":      {`update waiting set no = 7 where n = (select min(n) from waiting)`, 1},
		"a doubt is gone":             {`delete from doubt`, 1},
		"the cursor passed the queue": {`update lane set cursor = (select max(n) from message) where code = 5`, 7},
		"nobody watches an attempt": {`with p as (insert into process (name, beat_at, swept) values ('gone', now() - interval '1 hour', true) returning id)
			update attempt a set worker = p.id from p where a.kind = 1 and not exists (select from outcome o where o.n = a.n and o.no = a.no)`, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, dsn, _ := everyState(t)
			exec(t, dsn, test.harm)
			if a := auditLanes(t, l); a.AddsUp() || a.Lost != test.lost {
				t.Errorf("audit: %+v, want %d lost", a, test.lost)
			}
		})
	}
}

// A stream is its owner's: to anybody else it isn't there.
func TestAuditOfAnothersStream(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	owner, other := ledgertest.Tenant(t, l, "acme"), ledgertest.Tenant(t, l, "other")
	accept(t, l, ledgertest.Email(t, owner, "k", "shared-name", "a@example.com"))
	if a, err := l.Audit(t.Context(), owner, "shared-name"); err != nil || a.Last != 1 {
		t.Fatalf("the owner: %+v %v", a, err)
	}
	for _, within := range []message.Range{{}, {From: 1, To: 1}} {
		if a, err := l.AuditPart(t.Context(), other, "shared-name", within); !errors.Is(err, message.ErrNotFound) || a != nil {
			t.Errorf("another tenant, %+v: %+v %v", within, a, err)
		}
	}
	// With a stream of the same name of its own, it sees that one.
	for _, key := range ledgertest.Keys(2) {
		accept(t, l, ledgertest.Email(t, other, key, "shared-name", "a@example.com"))
	}
	if a, err := l.Audit(t.Context(), other, "shared-name"); err != nil || a.Last != 2 {
		t.Errorf("its own: %+v %v", a, err)
	}
}
