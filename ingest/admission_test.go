package ingest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// backlogs is what the ledger counts.
type backlogs struct {
	all   []message.Backlog
	asked int
	err   error
}

func (b *backlogs) Backlogs(context.Context, int64) ([]message.Backlog, error) {
	b.asked++
	return b.all, b.err
}

func laneOf(c message.Class) message.Lane {
	return message.Lane{Class: c, Channel: message.ChannelEmail}
}

func busy(t *testing.T, b *Busy, policy string) {
	t.Helper()
	switch {
	case b == nil && policy != "":
		t.Errorf("taken, want refused by %s", policy)
	case b != nil && b.Policy != policy:
		t.Errorf("refused by %s, want %q", b.Policy, policy)
	case b != nil && b.RetryAfter <= 0:
		t.Errorf("refused by %s with nothing to wait for", b.Policy)
	}
}

// The least urgent is refused first, and nothing for a backlog of what is less urgent;
// no store is asked for it.
func TestAdmissionShedsTheLeastUrgent(t *testing.T) {
	ledger := &backlogs{}
	a := NewAdmission(ledger, AdmissionConfig{Backlog: 1000})
	const all = "backlog"
	type classes [message.Campaign + 1]int64
	tests := []struct {
		backlog                          classes
		campaign, trigger, transactional string
	}{
		{classes{message.Transactional: 498}, "", "", ""},
		{classes{message.Transactional: 500}, all, "", ""},
		{classes{message.Transactional: 750}, all, all, ""},
		{classes{message.Transactional: 1000}, all, all, all},
		{classes{message.Trigger: 750}, all, all, ""},
		{classes{message.Trigger: 1_000_000}, all, all, ""},
		{classes{message.Transactional: 400, message.Trigger: 350}, all, all, ""},
		{classes{message.Campaign: 498}, "", "", ""},
		{classes{message.Campaign: 1_000_000}, all, "", ""},
		{classes{message.Transactional: 200, message.Trigger: 200, message.Campaign: 100}, all, "", ""},
	}
	for _, test := range tests {
		ledger.all = nil
		for class, n := range test.backlog {
			if class > 0 {
				push := message.Lane{Class: message.Class(class), Channel: message.ChannelPush}
				ledger.all = append(ledger.all, message.Backlog{Lane: push, Total: n, OutRate: 10})
			}
		}
		if err := a.Count(t.Context()); err != nil {
			t.Fatal(err)
		}
		busy(t, a.admit(1, laneOf(message.Campaign), 1), test.campaign)
		busy(t, a.admit(1, laneOf(message.Trigger), 1), test.trigger)
		busy(t, a.admit(1, laneOf(message.Transactional), 1), test.transactional)
	}
	if ledger.asked != len(tests) {
		t.Errorf("the ledger was asked %d times", ledger.asked)
	}
}

// When to come again is told by the speed of those lanes that count, and what was
// taken since the count counts.
func TestAdmissionTellsWhenToRetry(t *testing.T) {
	ledger := &backlogs{all: []message.Backlog{
		{Lane: laneOf(message.Transactional), Total: 999, OutRate: 10}, {Lane: laneOf(message.Campaign), OutRate: 1000},
	}}
	a := NewAdmission(ledger, AdmissionConfig{Backlog: 1000})
	if err := a.Count(t.Context()); err != nil {
		t.Fatal(err)
	}
	busy(t, a.admit(1, laneOf(message.Transactional), 101), "")
	if b := a.admit(1, laneOf(message.Transactional), 1); b == nil || b.RetryAfter != 10*time.Second || b.Quota != 1000 {
		t.Errorf("%+v", b)
	}
	if b := a.admit(1, laneOf(message.Campaign), 1); b == nil || b.RetryAfter != busyLeast || b.Quota != 500 {
		t.Errorf("%+v", b)
	}
}

// A tenant with too much in a lane is refused there, and nobody else is. What was
// taken since the count counts. A count that is too old refuses nobody.
func TestAdmissionByTenantBacklog(t *testing.T) {
	at := now
	lane := laneOf(message.Transactional)
	ledger := &backlogs{all: []message.Backlog{{Lane: lane, Total: 99, Tenants: map[int32]int64{1: 98, 2: 1}, OutRate: 1}}}
	a := NewAdmission(ledger, AdmissionConfig{TenantBacklog: 100, Now: func() time.Time { return at }})
	busy(t, a.admit(1, lane, 50), "") // not counted yet
	if err := a.Count(t.Context()); err != nil {
		t.Fatal(err)
	}
	busy(t, a.admit(1, lane, 2), "")
	busy(t, a.admit(1, lane, 1), "tenant-backlog")
	busy(t, a.admit(2, lane, 1), "")
	busy(t, a.admit(3, lane, 1), "")
	busy(t, a.admit(1, laneOf(message.Campaign), 1), "")
	at = at.Add(admissionStale + time.Second)
	busy(t, a.admit(1, lane, 1), "")
}

func TestAdmissionByRate(t *testing.T) {
	at := now
	a := NewAdmission(&backlogs{}, AdmissionConfig{TenantRate: 10, Now: func() time.Time { return at }})
	lane := laneOf(message.Transactional)
	for range 20 {
		busy(t, a.admit(1, lane, 1), "")
	}
	busy(t, a.admit(1, lane, 1), "tenant-rate")
	busy(t, a.admit(2, lane, 1), "")
	at = at.Add(100 * time.Millisecond)
	busy(t, a.admit(1, lane, 1), "")
	busy(t, a.admit(1, lane, 1), "tenant-rate")
	at = at.Add(time.Hour)
	busy(t, a.admit(1, lane, 50), "") // more than a burst, paid for afterwards
	at = at.Add(time.Second)
	busy(t, a.admit(1, lane, 1), "tenant-rate")
}

// A known key has its answer also from a door that is shut; nothing is accepted.
func TestAdmissionAnswersRepeats(t *testing.T) {
	l := &ledger{receipt: message.Receipt{Submission: 5, Sequence: 10}}
	a := NewAdmission(&backlogs{}, AdmissionConfig{TenantRate: 1})
	s := l.service(func(c *Config) { c.Admission = a })
	r := Request{Principal: owner, Key: "k", Content: email()}
	first, err := s.Submit(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	var refused *Busy
	if _, err := s.Submit(t.Context(), Request{Principal: owner, Key: "other", Content: email()}); !errors.As(err, &refused) {
		t.Fatalf("a new one: %v", err)
	}
	for _, m := range first.Messages {
		l.found.Items = append(l.found.Items, message.View{ID: m.ID, Recipient: m.To, Stream: m.Stream, Sequence: m.Sequence, State: message.StateSent})
	}
	again, err := s.Submit(t.Context(), r)
	if err != nil || !again.Replayed || again.ID != first.ID || again.Messages[1].State != message.StateSent {
		t.Errorf("%+v, %v", again, err)
	}
	if _, err := s.Submit(t.Context(), Request{Principal: owner, Content: email()}); !errors.As(err, &refused) {
		t.Errorf("one without a key: %v", err)
	}
	if len(l.got) != 1 {
		t.Errorf("the ledger was asked to accept %d", len(l.got))
	}
}
