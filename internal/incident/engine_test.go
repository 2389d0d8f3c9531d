package incident

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/stormpost/stormpost/internal/message"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is an engine whose clock goes only when it is told to.
type bench struct {
	*Engine
	now    time.Time
	events []Event
}

func newBench(file string) *bench {
	b := &bench{now: time.Date(2026, 3, 1, 2, 3, 4, 0, time.UTC)}
	b.start(file)
	return b
}

// start is also what a restart does.
func (b *bench) start(file string) {
	b.Engine = New(Config{File: file, Runbook: "https://example.com/runbook.md", Now: func() time.Time { return b.now }})
	b.Tell(func(e Event) { b.events = append(b.events, e) })
}

// pass observes the same every second.
func (b *bench) pass(d time.Duration, conditions ...Condition) {
	for range int(d / time.Second) {
		b.now = b.now.Add(time.Second)
		b.Observe(conditions, nil)
	}
}

// changes is what was told since the last call.
func (b *bench) changes() string {
	var all []string
	for _, e := range b.events {
		all = append(all, e.Incident.Cause+" "+string(e.Change))
	}
	b.events = nil
	return strings.Join(all, ", ")
}

func (b *bench) want(t *testing.T, what, changes string) {
	t.Helper()
	if got := b.changes(); got != changes {
		t.Fatalf("%s: %q, want %q", what, got, changes)
	}
}

var stall = Condition{Kind: Stall, Subject: "transactional.email", Lane: "transactional.email", Summary: "nothing moves", Count: 7, Oldest: 31 * time.Second, ETA: -1}

func TestLifeOfAnIncident(t *testing.T) {
	b := newBench("")
	b.pass(3*time.Second, stall)
	b.want(t, "before its time", "")
	b.pass(10*time.Second, stall, stall)
	b.want(t, "held, and seen twice", "stall/transactional.email opened")

	more := stall
	more.Count, more.ETA = 900, 90*time.Second
	b.pass(time.Second, more)
	i := b.Open()[0]
	if i.Count != 900 || i.ETA == nil || *i.ETA != 90 || !i.UpdatedAt.Equal(b.now) || !strings.HasPrefix(i.ID, "inc_") ||
		i.Runbook != "https://example.com/runbook.md#a-lanes-backlog-grows" || i.Severity != Critical || i.Command == "" || i.Lane != "transactional.email" {
		t.Errorf("facts: %+v", i)
	}
	b.want(t, "new facts are not told each second", "")
	for n := range 60 {
		more.Count = int64(n)
		b.pass(time.Second, more)
	}
	b.want(t, "but each minute", "stall/transactional.email updated")
	b.pass(3*time.Minute, more)
	b.want(t, "and only when there are any", "stall/transactional.email updated")

	b.pass(9 * time.Second)
	b.want(t, "just gone", "")
	b.pass(2 * time.Second)
	b.want(t, "gone for its hold-down", "stall/transactional.email resolved")
	page, err := b.List("", "", 50)
	if err != nil || len(page.Items) != 1 || page.Items[0].ResolvedAt == nil || page.Items[0].ID != i.ID || len(b.Open()) != 0 {
		t.Errorf("%+v, %v", page, err)
	}
}

// TestEachKindOpensInTime: what a check sees at least every 4 s after the fault
// must be open 10 s after it.
func TestEachKindOpensInTime(t *testing.T) {
	for _, k := range Kinds() {
		if n := kinds[k]; n.wait > 4*time.Second || n.hold <= 0 || n.severity == "" || n.command == "" {
			t.Errorf("%s: %+v", k, n)
		}
	}
	if len(Kinds()) < 9 {
		t.Error(Kinds())
	}
}

func TestNoFlapping(t *testing.T) {
	b := newBench("")
	for range 60 {
		b.pass(2*time.Second, stall)
		b.pass(2 * time.Second)
	}
	b.want(t, "never held for its time", "")
	for range 60 {
		b.pass(5*time.Second, stall)
		b.pass(5 * time.Second)
	}
	b.want(t, "on and off each 5 s", "stall/transactional.email opened"+strings.Repeat(", stall/transactional.email updated", strings.Count(fmt.Sprint(b.events), "updated")))
	if n := len(b.Open()); n != 1 {
		t.Fatalf("%d are open", n)
	}
	// On and off more slowly: each time it is held open for longer.
	b = newBench("")
	for range 60 {
		b.pass(15*time.Second, stall)
		b.pass(15 * time.Second)
	}
	if opened := strings.Count(b.changes(), "opened"); opened > 2 {
		t.Errorf("opened %d times in half an hour", opened)
	}
	// After a long quiet it is a new one, with the usual hold-down.
	b.pass(20 * time.Minute)
	b.pass(5*time.Second, stall)
	if i := b.Open(); len(i) != 1 || i[0].Returns != 0 {
		t.Errorf("%+v", i)
	}
}

// TestSince: what holds messages up counts, for as long after its end as asked.
func TestSince(t *testing.T) {
	b := newBench("")
	since := func() time.Time { return b.Since(b.now.Add(-time.Hour)) }
	b.pass(10*time.Second, Condition{Kind: InDoubt, Summary: "s"})
	if at := since(); !at.IsZero() {
		t.Errorf("a doubt holds nobody up: %s", at)
	}
	b.pass(4*time.Second, stall)
	opened := b.Open()[0].OpenedAt
	if b.Open()[0].Kind != Stall || !since().Equal(opened) {
		t.Errorf("since %s, opened %s", since(), opened)
	}
	b.pass(20 * time.Second)
	b.now = b.now.Add(59 * time.Minute)
	if !since().Equal(opened) {
		t.Errorf("an hour after: %s", since())
	}
	if b.now = b.now.Add(2 * time.Minute); !since().IsZero() {
		t.Errorf("later: %s", since())
	}
}

// TestWorse: a warning that becomes critical is told at once, and stays critical.
func TestWorse(t *testing.T) {
	b := newBench("")
	c := Condition{Kind: Credential, Subject: "relay", Summary: "it ends soon"}
	b.pass(5*time.Second, c)
	b.want(t, "a warning", "credential/relay opened")
	c.Severity, c.Summary = Critical, "nothing works"
	b.pass(time.Second, c)
	if len(b.events) != 1 || b.events[0].Change != Updated || b.events[0].Was != Warning || b.events[0].Incident.Severity != Critical || b.events[0].Incident.Summary != "nothing works" {
		t.Fatalf("%+v", b.events)
	}
	b.changes()
	c.Severity, c.Summary = "", "the last good one is in use"
	b.pass(30*time.Second, c)
	b.want(t, "better", "")
	if i := b.Open(); len(i) != 1 || i[0].Severity != Critical {
		t.Errorf("%+v", i)
	}
	b.pass(15 * time.Second)
	b.want(t, "over", "credential/relay resolved")
	b.now = b.now.Add(time.Hour)
	b.pass(5*time.Second, c)
	if i := b.Open(); len(i) != 1 || i[0].Severity != Warning {
		t.Errorf("another one: %+v", i)
	}
}

func TestBlindness(t *testing.T) {
	b := newBench("")
	b.pass(4*time.Second, stall)
	b.want(t, "open", "stall/transactional.email opened")
	away := Condition{Kind: LedgerAway, Summary: "away"}
	for range 100 {
		b.now = b.now.Add(time.Second)
		b.Observe([]Condition{away}, map[Kind]bool{Stall: true})
	}
	if got := b.changes(); !strings.HasPrefix(got, "ledger_away opened") || strings.Contains(got, "resolved") {
		t.Errorf("with the ledger away: %q", got)
	}
	b.pass(9 * time.Second)
	if got := b.changes(); strings.Contains(got, "stall") {
		t.Errorf("resolved before anybody saw for the hold-down that it is gone: %q", got)
	}
	b.pass(2 * time.Second)
	if got := b.changes(); !strings.Contains(got, "stall/transactional.email resolved") {
		t.Errorf("never resolved: %q", got)
	}
}

func TestBounds(t *testing.T) {
	b := newBench("")
	var many []Condition
	for n := range 5000 {
		many = append(many, Condition{Kind: Provider, Subject: fmt.Sprint(n), Summary: strings.Repeat("é\x00\n", 1000)})
	}
	b.pass(5*time.Second, many...)
	open := b.Open()
	if len(open) != mostOpen || len(b.pending) > mostOpen {
		t.Errorf("%d open, %d pending", len(open), len(b.pending))
	}
	if s := open[0].Summary; len(s) > maxSummary || strings.ContainsAny(s, "\x00\n") {
		t.Errorf("summary of %d bytes: %q", len(s), s)
	}
	for n := range 300 {
		b.pass(5*time.Second, Condition{Kind: InDoubt, Subject: fmt.Sprint(n)})
		b.pass(10 * time.Second)
	}
	page, err := b.List("", "", 10_000)
	if err != nil || len(page.Items) != mostRecent {
		t.Errorf("%d are kept, %v", len(page.Items), err)
	}
}

func TestPages(t *testing.T) {
	b := newBench("")
	var all []Condition
	for n := range 25 {
		all = append(all, Condition{Kind: Provider, Subject: fmt.Sprint(n)})
	}
	b.pass(5*time.Second, all...)
	b.pass(20*time.Second, all[:5]...) // 20 resolve
	for state, want := range map[string]int{"": 25, "open": 5, "resolved": 20} {
		seen := map[string]bool{}
		cursor := ""
		for {
			page, err := b.List(state, cursor, 4)
			if err != nil || len(page.Items) > 4 {
				t.Fatal(page, err)
			}
			for _, i := range page.Items {
				seen[i.ID] = true
			}
			if cursor = page.Next; cursor == "" {
				break
			}
		}
		if len(seen) != want {
			t.Errorf("state %q: %d, want %d", state, len(seen), want)
		}
	}
	for _, bad := range []string{"x", "1-2", "a-inc_x"} {
		var fields message.FieldErrors
		if _, err := b.List("", bad, 4); !errors.As(err, &fields) || fields[0].Field != "cursor" {
			t.Errorf("cursor %q: %v", bad, err)
		}
	}
}

// TestRestart: a restart neither opens again nor forgets.
func TestRestart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "incidents.json")
	b := newBench(file)
	save := func() {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		b.Run(ctx)
	}
	doubt := Condition{Kind: InDoubt, Summary: "2 messages", Count: 2}
	b.pass(4*time.Second, stall, doubt)
	b.pass(20*time.Second, stall)
	before, _ := b.List("", "", 50)
	save()
	b.changes()

	b.now = b.now.Add(time.Hour)
	b.start(file)
	after, _ := b.List("", "", 50)
	if fmt.Sprintf("%+v", ids(before.Items)) != fmt.Sprintf("%+v", ids(after.Items)) || len(after.Items) != 2 {
		t.Fatalf("%+v, before %+v", after.Items, before.Items)
	}
	b.pass(30*time.Second, stall)
	b.want(t, "still so", "")
	b.pass(time.Minute)
	b.want(t, "gone", "stall/transactional.email resolved")

	// A file that is not ours to read is left aside.
	for _, bad := range []string{"{", `{"version":9}`, strings.Repeat("x", fileLimit+1)} {
		if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		b.start(file)
		if page, _ := b.List("", "", 50); len(page.Items) != 0 {
			t.Errorf("%.20s gave %v", bad, page.Items)
		}
	}
	// Nothing would ever resolve a kind that is gone.
	if err := os.WriteFile(file, []byte(`{"version":1,"incidents":[{"id":"inc_x","cause":"old","kind":"old"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	b.start(file)
	if len(b.Open()) != 0 {
		t.Error("an unknown kind is open for ever")
	}
}

func ids(all []Incident) (out []string) {
	for _, i := range all {
		out = append(out, i.ID+" "+i.State())
	}
	return out
}

// TestSaved: the file is there as soon as something opened, without an end.
func TestSaved(t *testing.T) {
	file := filepath.Join(t.TempDir(), "incidents.json")
	b := newBench(file)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); b.Run(ctx) }()
	defer func() { cancel(); <-done }()
	b.pass(4*time.Second, stall)
	for deadline := time.Now().Add(10 * time.Second); ; {
		if all, err := load(file); err == nil && len(all) == 1 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("not saved")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestRunbookHasEachSection follows each kind's anchor into the runbook.
func TestRunbookHasEachSection(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "runbook.md"))
	if err != nil {
		t.Fatal(err)
	}
	var anchors []string
	drop := regexp.MustCompile(`[^\p{L}\p{N} _-]`) // GitHub's rule
	for _, h := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(string(b), -1) {
		anchors = append(anchors, strings.ReplaceAll(drop.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-"))
	}
	for _, k := range Kinds() {
		at := slices.Index(anchors, kinds[k].runbook)
		if at < 0 {
			t.Errorf("%s: the runbook has no section %q", k, kinds[k].runbook)
		} else if section := regexp.MustCompile(`(?m)^#+ `).Split(string(b), -1)[at+1]; !strings.Contains(section, "`"+string(k)+"`") && !strings.Contains(section, "`"+string(k)+"/") {
			t.Errorf("%s: the runbook's section %q doesn't name it", k, kinds[k].runbook)
		}
	}
}
