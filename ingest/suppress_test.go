package ingest

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/stormpost/stormpost/internal/message"
)

// listed is a source that has changes to tell.
type listed struct {
	changes []message.SuppressionChange
	err     error
	since   []uint64
}

func (l *listed) SuppressionChanges(_ context.Context, since uint64, each func(message.SuppressionChange)) (uint64, error) {
	l.since = append(l.since, since)
	for _, c := range l.changes {
		each(c)
	}
	l.changes = nil
	return since + 1, l.err
}

// Whoever is suppressed is refused at the door, by the field; but what was
// accepted before is answered as it was, and a request may insist.
func TestSuppressedIsRefused(t *testing.T) {
	source := &listed{}
	l := &ledger{}
	suppressed := NewSuppressions(source, slog.New(slog.DiscardHandler))
	s := l.service(func(c *Config) { c.Suppressions = suppressed })
	refresh := func(changes ...message.SuppressionChange) {
		t.Helper()
		source.changes = changes
		if err := suppressed.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	submit := func(key string, c *message.Content) error {
		_, err := s.Submit(t.Context(), Request{Principal: owner, Key: key, Content: c})
		return err
	}
	if err := submit("before", push()); err != nil {
		t.Fatal(err)
	}
	digest := message.SuppressionDigest(owner.Tenant, message.ChannelPush, push().Push.To.Token)
	refresh(message.SuppressionChange{Digest: digest, Active: true})
	var fields message.FieldErrors
	for _, key := range []string{"after", ""} {
		if err := submit(key, push()); !errors.As(err, &fields) || len(fields) != 1 || fields[0].Field != "to" {
			t.Errorf("key %q: %v", key, err)
		}
	}
	bypass := push()
	bypass.Push.BypassSuppression = true
	if err := submit("insists", bypass); err != nil {
		t.Errorf("a request that insists: %v", err)
	}
	mail := email()
	mail.Email.To, mail.Email.Cc = []string{"a@example.net"}, []string{"b@example.net", "Gone Away <Gone@example.net>"}
	refresh(message.SuppressionChange{Digest: message.SuppressionDigest(owner.Tenant, message.ChannelEmail, "gone@example.net"), Active: true})
	if err := submit("mail", mail); !errors.As(err, &fields) || len(fields) != 1 || fields[0].Field != "cc[1]" {
		t.Errorf("mail: %v", err)
	}
	refresh(message.SuppressionChange{Digest: digest})
	if err := submit("after", push()); err != nil {
		t.Errorf("cleared: %v", err)
	}
	if source.since[2] != 2 {
		t.Errorf("asked from %v on", source.since)
	}
	// A source that fails changes nothing, and is asked from the same point again.
	source.err = errors.New("away")
	if err := suppressed.Refresh(t.Context()); err == nil {
		t.Error("no error")
	}
	source.err = nil
	refresh()
	if n := len(source.since); source.since[n-1] != source.since[n-2] {
		t.Errorf("asked from %v on", source.since)
	}
	if err := submit("mail", mail); err == nil {
		t.Error("forgotten while the source was away")
	}
}
