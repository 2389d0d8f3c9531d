package dedupe_test

import (
	"testing"
	"time"

	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

// What a provider tells of a message settles its doubt, also when it was told
// before; a bounce for good ends a sent one as failed; the rest is only told.
func TestProviderEvents(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	tenant := ledgertest.Tenant(t, l, "acme")
	take := func(key string, outcome message.Outcome) message.Item {
		t.Helper()
		it := accepted(t, l, ledgertest.Email(t, tenant, key, "s", "a@example.com"))[0]
		claim(t, l, it, message.Claimed)
		if outcome != 0 {
			record(t, l, it, outcome, time.Minute)
		}
		return it
	}
	at := time.Now().Add(-time.Minute).Truncate(time.Microsecond)
	tell := func(it message.Item, kind message.EventKind) {
		t.Helper()
		e := message.ProviderEvent{ID: it.ID, Provider: "ses", Kind: kind, At: at, Detail: "words"}
		if err := l.Tell(t.Context(), []message.ProviderEvent{e, e}); err != nil { // told twice
			t.Fatal(err)
		}
		if err := l.Tell(t.Context(), []message.ProviderEvent{e}); err != nil {
			t.Fatal(err)
		}
	}
	doubt := take("doubt", message.Unknown)
	tell(doubt, message.EventDelivered)
	v := state(t, l, doubt, message.StateSent)
	if len(v.Events) != 1 || v.Events[0].Detail != "words" || !v.Events[0].At.Equal(at) || v.Attempts[0].DecidedBy != "policy:ses_events" {
		t.Errorf("%+v, %+v", v.Events, v.Attempts)
	}
	gone := take("gone", message.Unknown)
	tell(gone, message.EventBounced)
	if v := state(t, l, gone, message.StateFailed); v.Reason != message.RecipientGone {
		t.Errorf("reason %q", v.Reason)
	}
	bounced := take("bounced", message.Sent)
	tell(bounced, message.EventSoftBounce)
	state(t, l, bounced, message.StateSent)
	tell(bounced, message.EventBounced)
	if v := state(t, l, bounced, message.StateFailed); v.Reason != message.RecipientGone || len(v.Events) != 2 {
		t.Errorf("reason %q, %+v", v.Reason, v.Events)
	}
	// Told while its attempt is open: that one's outcome decides, and if it is
	// lost, what was told.
	open := take("open", 0)
	tell(open, message.EventBounced)
	state(t, l, open, message.StateSending)
	early := take("early", 0)
	tell(early, message.EventDelivered)
	record(t, l, early, message.Unknown, time.Minute)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		v, err := l.Message(t.Context(), tenant, early.ID)
		if err == nil && v.State == message.StateSent {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("told before it was a doubt: %v, %v", v.State, err)
		}
	}
	// Nobody else's: another id of the same key.
	other := doubt.ID
	other[20] ^= 1
	if err := l.Tell(t.Context(), []message.ProviderEvent{{ID: other, Provider: "ses", Kind: message.EventBounced, At: at}}); err != nil {
		t.Error(err)
	}
	state(t, l, doubt, message.StateSent)
}
