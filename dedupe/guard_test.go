package dedupe_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/recovery"
)

// promised is how soon a fault must be noticed and repaired.
const promised = 10 * time.Second

// guarded runs a guard on l with the default pace until the test ends.
func guarded(t *testing.T, l *dedupe.Ledger) {
	t.Helper()
	g, err := recovery.NewGuard(recovery.GuardConfig{
		Numbering: l, Every: 2 * time.Second, Repair: true, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Meters: noop.NewMeterProvider(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

// clients submit to their stream, each submission with its key until it is in.
type clients struct {
	stop     context.CancelFunc
	wg       sync.WaitGroup
	accepted [3]atomic.Int64
	broken   atomic.Int64 // refusals that say that numbering is broken
}

func submitting(t *testing.T, l *dedupe.Ledger, tenant int32) *clients {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c := &clients{stop: cancel}
	t.Cleanup(func() {
		cancel()
		c.wg.Wait()
	})
	for w := range 6 {
		c.wg.Go(func() {
			pause := time.NewTicker(5 * time.Millisecond)
			defer pause.Stop()
			for i := 0; ctx.Err() == nil; i++ {
				s := ledgertest.Email(t, tenant, fmt.Sprintf("%d-%d", w, i), fmt.Sprint("s", w%3), "a@example.com", "b@example.com")
				for {
					_, err := l.Accept(context.Background(), s)
					if err == nil {
						c.accepted[w%3].Add(2)
						break
					}
					if !errors.Is(err, message.ErrUnavailable) {
						t.Errorf("refused as if it were bad input: %v", err)
						return
					}
					if errors.Is(err, dedupe.ErrNumbering) {
						c.broken.Add(1)
					}
					if t.Failed() { // it may never go on
						return
					}
					<-pause.C
				}
				<-pause.C
			}
		})
	}
	return c
}

// more waits until each stream has n more messages than now.
func (c *clients) more(t *testing.T, n int64, within time.Duration) {
	t.Helper()
	var want [3]int64
	for i := range want {
		want[i] = c.accepted[i].Load() + n
	}
	deadline := time.Now().Add(within)
	for i := range want {
		for c.accepted[i].Load() < want[i] {
			if time.Now().After(deadline) {
				t.Fatalf("stream s%d has not gone on within %v", i, within)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
}

// complete stops the clients, and proves 1..N in each stream.
func (c *clients) complete(t *testing.T, l *dedupe.Ledger, dsn string, tenant int32) {
	t.Helper()
	c.stop()
	c.wg.Wait()
	for i := range c.accepted {
		n := c.accepted[i].Load()
		a, err := l.Audit(t.Context(), tenant, fmt.Sprint("s", i))
		if err != nil {
			t.Fatal(err)
		}
		if a.First != 1 || a.Last != n || len(a.Missing) != 0 || a.States[message.StateQueued] != n {
			t.Errorf("stream s%d: %d accepted, audit %+v", i, n, a)
		}
	}
	if twice := number(t, dsn, `select count(*) from (select from message group by stream, seq having count(*) > 1) x`); twice != 0 {
		t.Errorf("%d numbers are there twice", twice)
	}
	if low := number(t, dsn, `select count(*) from message m join lane l on l.code = m.n >> 57 where (m.n >> 6) & 2251799813685247 > (select last_value from position)`); low != 0 {
		t.Errorf("%d messages are above position", low)
	}
	if faults, err := l.CheckNumbering(t.Context()); err != nil || len(faults) != 0 {
		t.Errorf("afterwards: %v %v", faults, err)
	}
}

func number(t *testing.T, dsn, sql string) (n int64) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if err := conn.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// losses are what an upgrade may take away, with the names of the faults.
var losses = []struct{ name, sql, fault string }{
	{"position", `drop sequence position`, "sequence position is missing"},
	{"position set back", `select setval('position', 3)`, "sequence position is behind"},
	{"position changed", `alter sequence position increment 2 cache 50`, "sequence position is not as it was made"},
	{"index", `drop index message_5_0_number`, "unique index (stream, seq) of message_5_0 is missing"},
	{"index of the next era", `drop index message_5_1_number`, "unique index (stream, seq) of message_5_1 is missing"},
	{"counter", `delete from counter where stream = (select id from stream where name = 's1')`, "counter of stream"},
	{"counters", `truncate counter`, "counter of stream"},
	{"counter set back", `update counter set last = 1 where stream = (select id from stream where name = 's2')`, "is behind"},
	{"table counter", `drop table counter`, "table counter is missing"},
	{"counter's trigger", `drop trigger keep_mark on counter`, "trigger keep_mark of counter is missing"},
	{"identity's key", `alter table identity drop constraint identity_pkey`, "key (key) of identity is missing"},
	{"message's key", `alter table message drop constraint message_pkey`, "key (n) of message is missing"},
	{"attempt's key", `alter table attempt drop constraint attempt_pkey`, "key (n,no) of attempt is missing"},
	{"outcome's key", `alter table outcome drop constraint outcome_pkey`, "key (n,no) of outcome is missing"},
	{"counter's key", `alter table counter drop constraint counter_pkey`, "key (stream) of counter is missing"},
	{"stream's names", `alter table stream drop constraint stream_tenant_name_key`, "key (tenant,name) of stream is missing"},
	{"stream's identity", `alter table stream alter id drop identity`, "the identity of stream.id is missing"},
}

func TestGuardRestoresWhatIsLost(t *testing.T) {
	t.Parallel()
	for _, lost := range losses {
		t.Run(lost.name, func(t *testing.T) {
			t.Parallel()
			dsn := ledgertest.DSN(t)
			l := ledgertest.Open(t, dsn)
			tenant := ledgertest.Tenant(t, l, "acme")
			c := submitting(t, l, tenant)
			c.more(t, 20, promised)
			// So far on that position doesn't come by itself to where it was.
			exec(t, dsn, `select setval('position', 5000000)`)
			c.more(t, 20, promised)
			exec(t, dsn, lost.sql)
			faults, err := l.CheckNumbering(t.Context())
			if err != nil || !named(faults, lost.fault) {
				t.Fatalf("found %v %v, want %q", faults, err, lost.fault)
			}
			start := time.Now()
			guarded(t, l)
			for {
				if faults, err := l.CheckNumbering(t.Context()); err == nil && len(faults) == 0 {
					break
				} else if time.Since(start) > promised {
					t.Fatalf("after %v: %v %v", promised, faults, err)
				}
			}
			t.Logf("repaired within %v; %d refusals", time.Since(start), c.broken.Load())
			c.more(t, 20, promised)
			accept(t, l, ledgertest.Email(t, tenant, "new", "a new stream", "a@example.com"))
			c.complete(t, l, dsn, tenant)
		})
	}
}

func named(faults []message.Fault, name string) bool {
	return slices.ContainsFunc(faults, func(f message.Fault) bool { return strings.Contains(f.Name, name) })
}

// TestTwoGuardsAtDefaultPace loses everything in turn and then at once under
// two running guards: each is noticed and repaired in time, by one of them.
func TestTwoGuardsAtDefaultPace(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l, other := ledgertest.Open(t, dsn), ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	c := submitting(t, l, tenant)
	c.more(t, 20, promised)
	guarded(t, l)
	guarded(t, other)
	lose := []string{losses[0].sql, losses[3].sql, losses[5].sql}
	for _, all := range [][]string{lose[:1], lose[1:2], lose[2:], lose} {
		start := time.Now()
		for _, sql := range all { // each by itself: together they would wait for the clients in a circle
			exec(t, dsn, sql)
		}
		for faults := []message.Fault{{}}; len(faults) > 0; {
			var err error
			if faults, err = l.CheckNumbering(t.Context()); err != nil {
				t.Fatal(err)
			}
			if time.Since(start) > promised {
				t.Fatalf("after %v: %v", promised, faults)
			}
		}
		t.Logf("%s: whole again after %v", all, time.Since(start))
		c.more(t, 20, promised-time.Since(start))
	}
	if c.broken.Load() == 0 {
		t.Error("no client ever met the loss")
	}
	c.complete(t, l, dsn, tenant)
}

// TestGuardWithoutMessages restores a number that only the mark remembers.
func TestGuardWithoutMessages(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	s := ledgertest.Email(t, tenant, "1", "s", "a@example.com", "b@example.com")
	first := accept(t, l, s)
	for _, item := range ledgertest.Items(s, first) {
		claim(t, l, item, message.Claimed)
		record(t, l, item, message.Sent, 0)
	}
	r := dedupe.Retention{Era: time.Nanosecond}
	if err := l.Retain(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	accept(t, l, ledgertest.Email(t, tenant, "2", "other", "a@example.com")) // in the next era
	r.Messages = time.Nanosecond
	exec(t, dsn, `update era set began_at = now() - interval '1 hour' where no = 1`)
	// With a counter gone nothing is dropped, whose number nothing would keep.
	exec(t, dsn, `delete from counter where stream = 2`)
	if err := l.Retain(t.Context(), r); err == nil {
		t.Fatal("retention dropped what a counter is restored from")
	}
	if _, err := l.Numbering(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := l.RepairNumbering(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.Retain(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if n := number(t, dsn, `select count(*) from message where stream = 1`); n != 0 {
		t.Fatalf("%d messages were not dropped", n)
	}
	exec(t, dsn, `truncate counter`)
	exec(t, dsn, `drop sequence position`)
	if _, err := l.Numbering(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := l.RepairNumbering(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := accept(t, l, ledgertest.Email(t, tenant, "3", "s", "a@example.com"))
	if again.Sequence != 3 || again.Submission <= first.Submission {
		t.Fatalf("the next is %+v after %+v", again, first)
	}
}

// TestGuardLeavesWhatIsTwice removes no row, whatever is wrong with it.
func TestGuardLeavesWhatIsTwice(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	accept(t, l, ledgertest.Email(t, tenant, "1", "s", "a@example.com", "b@example.com"))
	exec(t, dsn, `drop index message_5_0_number; update message set seq = 2; delete from counter`)
	if _, err := l.Numbering(t.Context()); err != nil {
		t.Fatal(err)
	}
	repaired, err := l.RepairNumbering(t.Context())
	if err == nil || !strings.Contains(err.Error(), "message_5_0") || !strings.Contains(err.Error(), "none is removed") {
		t.Fatalf("a number that is there twice: %v", err)
	}
	if !named(repaired, "counter of stream") {
		t.Fatalf("the rest was not repaired: %v", repaired)
	}
	faults, err := l.Numbering(t.Context())
	if err != nil || len(faults) != 1 || !named(faults, "unique index") {
		t.Fatalf("it doesn't stay open: %v %v", faults, err)
	}
	if r := accept(t, l, ledgertest.Email(t, tenant, "2", "s", "a@example.com")); r.Sequence != 3 {
		t.Fatalf("the next number is %d", r.Sequence)
	}
}

// TestWithoutKeysNothingGoesTwice: what a key holds apart is not written while
// the key is missing.
func TestWithoutKeysNothingGoesTwice(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	s := ledgertest.Email(t, tenant, "1", "s", "a@example.com")
	item := ledgertest.Items(s, accept(t, l, s))[0]
	claim(t, l, item, message.Claimed)
	exec(t, dsn, `alter table identity drop constraint identity_pkey; alter table attempt drop constraint attempt_pkey; alter table stream drop constraint stream_tenant_name_key`)
	if _, err := l.Accept(t.Context(), s); !errors.Is(err, dedupe.ErrNumbering) || !errors.Is(err, message.ErrUnavailable) {
		t.Errorf("a repeat without identity's key: %v", err)
	}
	verdicts := make(chan message.Claim, 1)
	go func() {
		c, err := l.Claim(t.Context(), item)
		if err != nil {
			t.Error(err)
		}
		verdicts <- c
	}()
	if _, err := l.Accept(t.Context(), ledgertest.Email(t, tenant, "2", "new", "a@example.com")); !errors.Is(err, dedupe.ErrNumbering) {
		t.Errorf("a new stream without stream's key: %v", err)
	}
	select {
	case c := <-verdicts:
		t.Errorf("a claim without attempt's key: %+v", c)
	case <-time.After(300 * time.Millisecond):
	}
	if _, err := l.RepairNumbering(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c := <-verdicts; c.Verdict != message.Taken {
		t.Errorf("the claim, once it could be judged: %+v", c)
	}
}

// TestManyStreams: a lost counter among many, and a great loss, are found and
// repaired in a bounded number of checks.
func TestGuardFindsOneAmongMany(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	exec(t, dsn, `with s as (insert into stream (tenant, name) select $1, 'n' || i from generate_series(1, 60000) i returning id) insert into counter (stream, last) select id, 0 from s`, tenant)
	exec(t, dsn, `delete from counter where stream = 44444`)
	find := func() (checks int) {
		for checks < 10 {
			start := time.Now()
			faults, err := l.Numbering(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			checks++
			if took := time.Since(start); took > time.Second {
				t.Errorf("a check took %v", took)
			}
			if len(faults) > 0 {
				return checks
			}
		}
		t.Fatal("not found")
		return 0
	}
	if n := find(); n > 4 {
		t.Errorf("found in %d checks", n)
	}
	if r, err := l.RepairNumbering(t.Context()); err != nil || len(r) != 1 || r[0].Name != "counter of stream 44444 is missing" {
		t.Fatalf("%v %v", r, err)
	}
	noted, last, err := l.Repaired(t.Context(), 0, time.Minute)
	if err != nil || len(noted) != 1 || noted[0].Name != "counter of stream 44444 is missing" {
		t.Errorf("noted: %v, %v", noted, err)
	}
	if noted, again, err := l.Repaired(t.Context(), last, time.Minute); err != nil || len(noted) > 0 || again != last {
		t.Errorf("noted: %v, %v", noted, err)
	}
	exec(t, dsn, `truncate counter`)
	find()
	rounds := 0
	for r := []message.Fault{{}}; len(r) > 0; rounds++ {
		var err error
		if r, err = l.RepairNumbering(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err = l.Numbering(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := number(t, dsn, `select count(*) from counter`); n != 60000 {
		t.Fatalf("%d counters after %d rounds", n, rounds)
	}
}
