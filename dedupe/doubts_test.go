package dedupe_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

// doubted makes n messages of a tenant that are in doubt.
func doubted(t *testing.T, l *dedupe.Ledger, tenant int32, n int, provider string) []message.Item {
	t.Helper()
	items := make([]message.Item, n)
	for i, key := range ledgertest.Keys(n) {
		s := ledgertest.Email(t, tenant, provider+key, "s", "a@example.com")
		items[i] = ledgertest.Items(s, accept(t, l, s))[0]
		claim(t, l, items[i], message.Claimed)
		r := message.Report{Position: items[i].Position, Attempt: 1, Provider: provider, Result: message.Result{Outcome: message.Unknown}}
		if err := l.Record(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	return items
}

func TestDecideByFilter(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	acme, other := ledgertest.Tenant(t, l, "acme"), ledgertest.Tenant(t, l, "other")
	mine := doubted(t, l, acme, 3, "smtp")
	old := doubted(t, l, acme, 2, "relay")
	theirs := doubted(t, l, other, 1, "smtp")
	exec(t, dsn, `update doubt set since = now() - interval '1 day' where n = any ($1)`, []int64{int64(old[0].Position), int64(old[1].Position)})
	hour := time.Now().Add(-time.Hour)
	for name, test := range map[string]struct {
		filter message.DoubtFilter
		want   int64
	}{
		"none":        {message.DoubtFilter{}, 6},
		"lane":        {message.DoubtFilter{Lane: message.Lanes()[0]}, 6},
		"other lane":  {message.DoubtFilter{Lane: message.Lanes()[1]}, 0},
		"provider":    {message.DoubtFilter{Provider: "relay"}, 2},
		"tenant":      {message.DoubtFilter{Tenant: other}, 1},
		"since":       {message.DoubtFilter{Since: hour}, 4},
		"until":       {message.DoubtFilter{Until: hour}, 2},
		"all of them": {message.DoubtFilter{Lane: message.Lanes()[0], Provider: "smtp", Tenant: acme, Since: hour}, 3},
	} {
		c, err := l.CountDoubts(t.Context(), test.filter)
		if err != nil || c.Matched != test.want || c.Lanes[message.Lanes()[0]] != test.want || c.Causes["unknown"] != test.want || int64(len(c.Sample)) != test.want {
			t.Errorf("%s: %+v %v, want %d", name, c, err, test.want)
		}
	}
	n, more, err := l.DecideMany(t.Context(), message.DoubtFilter{Tenant: acme, Provider: "smtp"}, message.DecideResend, "acme key abc", "log is empty")
	if n != 3 || more || err != nil {
		t.Fatalf("decided %d, more %t, %v", n, more, err)
	}
	for _, it := range mine {
		if a := state(t, l, it, message.StateWaiting).Attempts[0]; a.DecidedBy != "acme key abc" || a.Because != "log is empty" {
			t.Errorf("on record: %+v", a)
		}
	}
	for _, it := range append(old, theirs...) {
		state(t, l, it, message.StateInDoubt)
	}
	if n, _, err := l.DecideMany(t.Context(), message.DoubtFilter{Tenant: acme, Provider: "smtp"}, message.DecideDrop, "x", "again"); n != 0 || err != nil {
		t.Errorf("again: %d %v", n, err)
	}
}

// However many decide at once, each doubt is decided once.
func TestDecideByFilterAtOnce(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	tenant := ledgertest.Tenant(t, l, "acme")
	items := doubted(t, l, tenant, 1200, "p")
	var total atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			n, _, err := l.DecideMany(t.Context(), message.DoubtFilter{}, message.DecideResend, "k", "r")
			if err != nil {
				t.Error(err)
			}
			total.Add(n)
		})
	}
	wg.Wait()
	if c, err := l.CountDoubts(t.Context(), message.DoubtFilter{}); err != nil || c.Matched != 0 || total.Load() != 1200 {
		t.Errorf("decided %d, left %+v, %v", total.Load(), c, err)
	}
	due, err := l.Due(t.Context(), items[0].Position.Lane(), 2000)
	if err != nil || len(due) != 1200 {
		t.Errorf("%d are due, %v", len(due), err)
	}
}
