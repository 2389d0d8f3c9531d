package dedupe_test

import (
	"slices"
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
	// Told while it waits to be sent again, by a policy or a person: it isn't.
	for kind, want := range map[message.EventKind]message.State{message.EventDelivered: message.StateSent, message.EventBounced: message.StateFailed} {
		again := take("again"+string(kind), 0)
		lost(t, l, again, time.Hour)
		tell(again, kind)
		state(t, l, again, want)
		again.Attempt = 2
		claim(t, l, again, message.Taken)

		asked := take("asked"+string(kind), message.Unknown)
		if err := l.Decide(t.Context(), asked.ID, 0, message.DecideResend, "alice", "not in its log"); err != nil {
			t.Fatal(err)
		}
		tell(asked, kind)
		state(t, l, asked, want)
	}
	// Nor if it was told before its answer was lost.
	before := take("before", 0)
	tell(before, message.EventDelivered)
	lost(t, l, before, 0)
	before.Attempt = 2
	claim(t, l, before, message.Taken)
	state(t, l, before, message.StateSent)
	stoodIn := func(it message.Item, kind message.Outcome) {
		t.Helper()
		steps, err := l.StoodIn(t.Context(), doubt.Position, it.Position)
		if err != nil || len(steps) != 1 || steps[0].ID != it.ID || steps[0].Attempt != 2 || steps[0].Kind != message.StepKind(kind) || steps[0].At.IsZero() {
			t.Errorf("attempts that are no worker's: %+v %v", steps, err)
		}
	}
	stoodIn(before, message.Sent)
	waits := take("waits", 0)
	lost(t, l, waits, time.Hour)
	changed, err := l.TellOf(t.Context(), []message.ProviderEvent{{ID: waits.ID, Provider: "ses", Kind: message.EventDelivered, At: at}, {ID: doubt.ID, Provider: "ses", Kind: message.EventSoftBounce, At: at}})
	if err != nil || !slices.Equal(changed, []message.Position{waits.Position}) {
		t.Errorf("changed %v %v", changed, err)
	}
	stoodIn(waits, message.Sent)
	// Nobody else's: another id of the same key.
	other := doubt.ID
	other[20] ^= 1
	if err := l.Tell(t.Context(), []message.ProviderEvent{{ID: other, Provider: "ses", Kind: message.EventBounced, At: at}}); err != nil {
		t.Error(err)
	}
	state(t, l, doubt, message.StateSent)
}

// A bounce for good and a complaint put the address on its tenant's list, once,
// however it is written; a soft bounce and a test message don't. The ledger and
// the door mean the same by an address.
func TestBouncesSuppress(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	tenant := ledgertest.Tenant(t, l, "acme")
	send := func(key, to string, test bool) message.Item {
		t.Helper()
		s := ledgertest.Email(t, tenant, key, "s", to)
		s.Test = test
		it := ledgertest.Items(s, accept(t, l, s))[0]
		claim(t, l, it, message.Claimed)
		record(t, l, it, message.Sent, 0)
		return it
	}
	tell := func(it message.Item, kind message.EventKind) {
		t.Helper()
		e := message.ProviderEvent{ID: it.ID, Provider: "ses", Kind: kind, At: time.Now()}
		if err := l.Tell(t.Context(), []message.ProviderEvent{e}); err != nil {
			t.Fatal(err)
		}
	}
	list := func(to string) []message.Suppression {
		t.Helper()
		p, err := l.Suppressions(t.Context(), message.SuppressionFilter{Tenant: tenant, Recipient: to, Limit: 10})
		if err != nil {
			t.Fatal(err)
		}
		return p.Items
	}
	tell(send("soft", "soft@reader.example", false), message.EventSoftBounce)
	tell(send("delivered", "well@reader.example", false), message.EventDelivered)
	tell(send("test", "test@reader.example", true), message.EventBounced)
	if all := list(""); len(all) != 0 {
		t.Fatalf("suppressed: %+v", all)
	}
	first := send("1", `"Ann <the first>" <Ann@Reader.example>`, false)
	late := send("2", "ann@reader.example", false)
	tell(first, message.EventBounced)
	tell(late, message.EventBounced)
	tell(send("3", "Ben <ben@reader.example>", false), message.EventComplained)
	all := list("")
	if len(all) != 2 || all[1].Recipient != "ann@reader.example" || all[1].Reason != message.RecipientGone || all[1].Provider != "ses" ||
		all[0].Recipient != "ben@reader.example" || all[0].Reason != "complained" {
		t.Fatalf("suppressed: %+v", all)
	}
	if found := list("Anna <ANN@reader.example>"); len(found) != 1 {
		t.Errorf("looked for by another spelling: %+v", found)
	}
	active, _, _ := changes(t, l, 0)
	want := map[[16]byte]bool{
		message.SuppressionDigest(tenant, message.ChannelEmail, "ANN@reader.example"):           true,
		message.SuppressionDigest(tenant, message.ChannelEmail, "Someone <ben@reader.example>"): true,
	}
	for _, d := range active {
		delete(want, d)
	}
	if len(active) != 2 || len(want) != 0 {
		t.Errorf("the door knows others: %x", active)
	}
	if _, err := l.ClearSuppression(t.Context(), tenant, all[1].ID, "acme key x"); err != nil {
		t.Fatal(err)
	}
	tell(late, message.EventComplained) // accepted before it was cleared
	if all := list(""); len(all) != 1 {
		t.Errorf("back by an old message: %+v", all)
	}
	tell(send("4", "ann@reader.example", false), message.EventComplained)
	if all := list("ann@reader.example"); len(all) != 1 || all[0].Reason != "complained" {
		t.Errorf("complained since: %+v", all)
	}
}
