package ingest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/message"
)

// ledger answers as it is told, and keeps what it was asked.
type ledger struct {
	receipt message.Receipt
	err     error
	got     []*message.Submission
	items   []message.Item
	found   message.Page[message.View]
	findErr error
}

func (l *ledger) Accept(_ context.Context, s *message.Submission) (message.Receipt, error) {
	l.got = append(l.got, s)
	return l.receipt, l.err
}

func (l *ledger) Publish(items []message.Item) { l.items = append(l.items, items...) }

func (l *ledger) Messages(context.Context, message.Filter) (message.Page[message.View], error) {
	return l.found, l.findErr
}

var (
	now   = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	owner = &keyring.Principal{Tenant: 7, Domains: []string{"example.com"}}
)

func (l *ledger) service(change ...func(*Config)) *Service {
	c := Config{Finder: l, Now: func() time.Time { return now }}
	for _, ch := range change {
		ch(&c)
	}
	return New(l, l, c)
}

func email() *message.Content {
	return &message.Content{Email: &message.Email{
		From: "a@example.com", To: []string{"b@example.net"}, Bcc: []string{"c@example.net"}, Text: "t",
	}}
}

func push() *message.Content {
	return &message.Content{Push: &message.Push{Platform: "fcm", To: message.Target{Token: "t"}, Data: map[string]string{"k": "v"}}}
}

func TestSubmit(t *testing.T) {
	l := &ledger{receipt: message.Receipt{Submission: 5, Sequence: 10}}
	a, err := l.service().Submit(context.Background(), Request{Principal: owner, Key: "k", Content: email(), Trace: "trace"})
	if err != nil {
		t.Fatal(err)
	}
	sub := l.got[0]
	if sub.Tenant != 7 || sub.Key != message.HashKey(7, "k") || sub.Trace != "trace" || sub.Test || !sub.ExpiresAt.Equal(now.Add(72*time.Hour)) {
		t.Errorf("submission: %+v", sub)
	}
	for i, m := range a.Messages {
		want := Message{sub.ID().Message(i), sub.Recipients[i], message.StateQueued, "default", int64(10 + i)}
		if m != want {
			t.Errorf("message %+v, want %+v", m, want)
		}
		item := l.items[i]
		if item.ID != m.ID || item.Attempt != 1 || item.Trace != "trace" || string(item.Content) != string(sub.Content) ||
			item.Position != message.PositionOf(sub.Lane, 5, i) {
			t.Errorf("item: %+v", item)
		}
	}
	if len(a.Messages) != 2 || len(l.items) != 2 || a.ID != sub.ID() || a.Replayed {
		t.Errorf("accepted: %+v", a)
	}
}

func TestSupersedeKey(t *testing.T) {
	for key, good := range map[string]bool{
		"code:user-7 für Zoë": true, strings.Repeat("k", 255): true, strings.Repeat("k", 256): false,
		"a\nb": false, "a\x00b": false, "a\u2028b": false, "\xff": false,
	} {
		l := &ledger{receipt: message.Receipt{Submission: 5, Sequence: 10}}
		c := email()
		c.Email.SupersedeKey = key
		_, err := l.service().Submit(context.Background(), Request{Principal: owner, Content: c})
		var wrong message.FieldErrors
		switch {
		case good && (err != nil || len(l.got) != 1 || l.got[0].Supersede != key):
			t.Errorf("%q: %v, submitted %+v", key, err, l.got)
		case !good && (!errors.As(err, &wrong) || wrong[0].Field != "supersede_key" || len(l.got) != 0):
			t.Errorf("%q: %v, submitted %+v", key, err, l.got)
		}
	}
}

// FCM's names are its own, those of other platforms the app's.
func TestReservedData(t *testing.T) {
	s := (&ledger{}).service(func(c *Config) { c.Platforms = []string{"fcm", "apns"} })
	for _, platform := range []string{"fcm", "apns"} {
		for key, reserved := range map[string]bool{
			"from": true, "message_type": true, "google": true, "googlex": true, "google.x": true, "gcmx": true, "gcm.notification.x": true,
			"k": false, "From": false, "a.gcm": false,
		} {
			c := push()
			c.Push.Platform, c.Push.Data = platform, map[string]string{key: "v"}
			if wrong := s.Validate(Request{Principal: owner, Content: c}); (len(wrong) > 0) != (reserved && platform == "fcm") {
				t.Errorf("%s, %s: %v", platform, key, wrong)
			}
		}
		c := push()
		c.Push.Platform, c.Push.Data = platform, map[string]string{"stormpost_id": "v"}
		if wrong := s.Validate(Request{Principal: owner, Content: c}); len(wrong) != 1 {
			t.Errorf("%s: our own name: %v", platform, wrong)
		}
	}
}

// A link's port is one that can be connected to.
func TestLinkPort(t *testing.T) {
	for port, good := range map[string]bool{"": true, ":": true, ":1": true, ":443": true, ":65535": true, ":0": false, ":65536": false, ":99999": false, ":-1": false} {
		if got := httpsURL("https://example.com" + port + "/x"); got != good {
			t.Errorf("%s: %v", port, got)
		}
	}
}

func TestLife(t *testing.T) {
	l := &ledger{}
	s := l.service()
	late := email()
	late.Email.SendAt = now.Add(time.Hour)
	for _, c := range []*message.Content{push(), late} {
		if _, err := s.Submit(context.Background(), Request{Principal: owner, Content: c}); err != nil {
			t.Fatal(err)
		}
	}
	if got := l.got[0].ExpiresAt; !got.Equal(now.Add(24 * time.Hour)) {
		t.Errorf("a push expires at %v", got)
	}
	if got := l.got[1].ExpiresAt; !got.Equal(now.Add(73 * time.Hour)) {
		t.Errorf("a scheduled email expires at %v", got)
	}
	if l.got[0].Key == l.got[1].Key {
		t.Error("requests without a key share one")
	}
}

func TestNotPublished(t *testing.T) {
	for name, l := range map[string]*ledger{
		"waiting":     {receipt: message.Receipt{Waiting: true}},
		"replayed":    {receipt: message.Receipt{Replayed: true}},
		"unavailable": {err: message.ErrUnavailable},
		"reused":      {err: message.ErrKeyReused},
	} {
		a, err := l.service().Submit(context.Background(), Request{Principal: owner, Key: "k", Content: push()})
		if !errors.Is(err, l.err) || (a == nil) != (l.err != nil) {
			t.Errorf("%s: %v, %v", name, a, err)
		}
		if len(l.items) != 0 {
			t.Errorf("%s: published", name)
		}
		if a != nil && l.receipt.Waiting && a.Messages[0].State != message.StateWaiting {
			t.Errorf("%s: %+v", name, a.Messages)
		}
	}
}

func TestTestMode(t *testing.T) {
	l := &ledger{}
	s := l.service()
	p := *owner
	p.Test = true
	for _, who := range []*keyring.Principal{owner, &p} {
		if _, err := s.Submit(context.Background(), Request{Principal: who, Key: "k", Content: push()}); err != nil {
			t.Fatal(err)
		}
	}
	if l.got[0].Key == l.got[1].Key || l.got[0].Test || !l.got[1].Test {
		t.Errorf("live %+v, test %+v", l.got[0], l.got[1])
	}
	if KeyHash(owner, "k") != l.got[0].Key || KeyHash(&p, "k") != l.got[1].Key {
		t.Error("KeyHash is another one than what was submitted")
	}
}

func TestRepeatAfterExpiry(t *testing.T) {
	c := push()
	c.Push.ExpiresAt = now.Add(-time.Minute)
	sub, err := message.Submit(7, "k", c, now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	view := message.View{ID: sub.ID().Message(0), State: message.StateExpired, Stream: "default", Sequence: 4, Recipient: "t"}
	found := message.Page[message.View]{Items: []message.View{view}}
	other := view
	other.ID[3]++
	request := Request{Principal: owner, Key: "k", Content: c}
	var fields message.FieldErrors

	l := &ledger{found: found}
	a, err := l.service().Submit(context.Background(), request)
	if err != nil || !a.Replayed || a.Messages[0].State != message.StateExpired || a.Messages[0].Sequence != 4 || a.Messages[0].ID != view.ID {
		t.Errorf("found: %+v, %v", a, err)
	}
	parked := message.View{ID: view.ID, State: message.StateHeld} // who it is to, the ledger can't tell
	l = &ledger{found: message.Page[message.View]{Items: []message.View{parked}}}
	if a, err = l.service().Submit(context.Background(), request); err != nil || a.Messages[0].State != message.StateHeld || a.Messages[0].To != c.Recipients()[0] {
		t.Errorf("parked: %+v, %v", a, err)
	}
	for name, l := range map[string]*ledger{
		"not found": {findErr: message.ErrNotFound},
		"none":      {},
		"another":   {found: message.Page[message.View]{Items: []message.View{other}}},
	} {
		if _, err := l.service().Submit(context.Background(), request); !errors.As(err, &fields) || fields[0].Field != "expires_at" {
			t.Errorf("%s: %v", name, err)
		}
	}
	// While nobody can tell whether it was kept, it isn't called refused.
	l = &ledger{findErr: message.ErrUnavailable}
	if _, err := l.service().Submit(context.Background(), request); !errors.Is(err, message.ErrUnavailable) {
		t.Errorf("ledger away: %v", err)
	}
	if len(l.got) != 0 {
		t.Error("a stale request reached the ledger")
	}
}

func TestPushCheck(t *testing.T) {
	for _, c := range []struct {
		err   error
		field string
	}{{errors.New("is too large"), "data"}, {message.FieldErrors{{Field: "notification", Problem: "is too large"}}, "notification"}} {
		l := &ledger{}
		s := l.service(func(cfg *Config) { cfg.PushCheck = func(*message.Push) error { return c.err } })
		got := s.Validate(Request{Principal: owner, Content: push()})
		if len(got) != 1 || got[0] != (message.FieldError{Field: c.field, Problem: "is too large"}) {
			t.Errorf("%v", got)
		}
	}
}

func TestEmailCheck(t *testing.T) {
	for _, c := range []struct {
		err   error
		field string
	}{{nil, ""}, {errors.New("is too large"), "text"}, {message.FieldErrors{{Field: "attachments", Problem: "is too large"}}, "attachments"}} {
		l := &ledger{}
		s := l.service(func(cfg *Config) { cfg.EmailCheck = func(*message.Email) error { return c.err } })
		got := s.Validate(Request{Principal: owner, Content: email()})
		if c.err == nil && len(got) != 0 || c.err != nil && (len(got) != 1 || got[0] != (message.FieldError{Field: c.field, Problem: "is too large"})) {
			t.Errorf("%v: %v", c.err, got)
		}
	}
}

func TestPlatforms(t *testing.T) {
	l := &ledger{}
	s := l.service(func(c *Config) { c.Platforms = []string{"webpush", "apns"} })
	key := strings.Repeat("A", 22)
	web := message.Target{Endpoint: "https://push.example.net/x", Keys: map[string]string{"auth": key, "p256dh": "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"}}
	point := message.Target{Endpoint: web.Endpoint, Keys: map[string]string{"auth": key, "p256dh": "B" + strings.Repeat("A", 86)}}
	bad := message.Target{Endpoint: "http://push.example.net/x", Keys: map[string]string{"auth": "x", "more": "y"}}
	for _, c := range []struct {
		platform string
		to       message.Target
		fields   []string
	}{
		{"webpush", web, nil},
		{"webpush", bad, []string{"to.endpoint", "to.keys.auth", "to.keys.more", "to.keys.p256dh"}},
		{"webpush", point, []string{"to.keys.p256dh"}},
		{"webpush", message.Target{Token: "t"}, []string{"to"}},
		{"apns", message.Target{Token: "t"}, nil},
		{"apns", message.Target{Topic: "t"}, []string{"to.topic"}},
		{"apns", web, []string{"to.endpoint"}},
		{"fcm", message.Target{Token: "t"}, []string{"platform"}},
		{"apns", message.Target{Token: "t", Topic: "u"}, []string{"to"}},
		{"apns", message.Target{Token: "t", Keys: map[string]string{"auth": "x"}}, []string{"to.keys"}},
	} {
		content := push()
		content.Push.Platform, content.Push.To = c.platform, c.to
		var got []string
		for _, f := range s.Validate(Request{Principal: owner, Content: content}) {
			got = append(got, f.Field)
		}
		slices.Sort(got)
		if !slices.Equal(got, c.fields) {
			t.Errorf("%s to %+v: %v, want %v", c.platform, c.to, got, c.fields)
		}
	}
}

func TestGoodEmails(t *testing.T) {
	l := &ledger{}
	s := l.service()
	for name, change := range map[string]func(*message.Email){
		"unsubscribe": func(e *message.Email) {
			e.Class = "campaign"
			e.Headers = map[string]string{
				"List-Unsubscribe":      "<https://example.com/u?1>, <mailto:u@example.com>",
				"List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
			}
		},
		"limits": func(e *message.Email) {
			e.Subject = strings.Repeat("ü", 499)
			e.Headers = map[string]string{"X-A": strings.Repeat("a", 998-len("X-A: "))}
			e.SendAt, e.ExpiresAt = now.Add(30*24*time.Hour), now.Add(90*24*time.Hour)
			e.Stream = strings.Repeat("s", 64)
			e.Tags = slices.Repeat([]string{"a.b_c-d:e=f"}, 20)
		},
		"past send_at": func(e *message.Email) { e.SendAt = now.Add(-time.Hour) },
		"attachment only": func(e *message.Email) {
			e.Text, e.Attachments = "", []message.Attachment{{Filename: "ä.txt", Content: []byte{}}}
		},
		"types": func(e *message.Email) {
			e.Attachments = []message.Attachment{{Filename: "a", ContentType: `text/plain; charset="utf-8"`, ContentID: "a@b", Content: []byte("x")}}
		},
		"bcc alone": func(e *message.Email) { e.To = nil },
	} {
		c := email()
		change(c.Email)
		if got := s.Validate(Request{Principal: owner, Content: c}); len(got) != 0 {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestProblemsAreBounded(t *testing.T) {
	c := email()
	c.Email.To, c.Email.Bcc = slices.Repeat([]string{"x"}, 50), nil
	c.Email.From = ""
	c.Email.Headers = map[string]string{"From": "x", "To": "y"}
	if got := (&ledger{}).service().Validate(Request{Principal: owner, Content: c}); len(got) != MaxProblems {
		t.Errorf("%d problems", len(got))
	}
	both := message.Content{Email: email().Email, Push: push().Push}
	for _, c := range []*message.Content{{}, &both} {
		if got := (&ledger{}).service().Validate(Request{Principal: owner, Content: c}); len(got) != 1 || got[0].Field != "channel" {
			t.Errorf("%v", got)
		}
	}
}

func TestAttachmentLimits(t *testing.T) {
	c := email()
	half := make([]byte, MaxContent/2)
	c.Email.Attachments = []message.Attachment{{Filename: "a", Content: half}, {Filename: "b", Content: half}}
	got := (&ledger{}).service().Validate(Request{Principal: owner, Content: c})
	if len(got) != 1 || got[0].Field != "attachments" {
		t.Errorf("over the limit by one byte: %v", got)
	}
	c.Email.Text = ""
	if got := (&ledger{}).service().Validate(Request{Principal: owner, Content: c}); len(got) != 0 {
		t.Errorf("at the limit: %v", got)
	}
	c.Email.Attachments = slices.Repeat([]message.Attachment{{Filename: "a", Content: []byte("x")}}, 21)
	if got := (&ledger{}).service().Validate(Request{Principal: owner, Content: c}); len(got) != 1 || got[0].Field != "attachments" {
		t.Errorf("21 attachments: %v", got)
	}
	c.Email.Attachments = []message.Attachment{
		{Filename: "a", ContentID: "x", Content: half}, {Filename: "b", ContentID: "x", Content: []byte("x")},
		{Filename: "c", ContentType: "multipart/mixed", Content: []byte("x")},
	}
	got = (&ledger{}).service().Validate(Request{Principal: owner, Content: c})
	if len(got) != 2 || got[0].Field != "attachments[1].content_id" || got[1].Field != "attachments[2].content_type" {
		t.Errorf("%v", got)
	}
}

// TestKeyless: only a request without a key may be a repeat, and as one it is
// answered with the first one's ids.
func TestKeyless(t *testing.T) {
	since := now.Add(-time.Hour)
	l := &ledger{receipt: message.Receipt{Submission: 5, Sequence: 10}}
	s := l.service(func(c *Config) { c.RepeatsSince = func() time.Time { return since } })
	submit := func(r Request) *Accepted {
		t.Helper()
		r.Principal, r.Content = owner, email()
		a, err := s.Submit(context.Background(), r)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	submit(Request{Key: "k"})
	first := submit(Request{})
	if keyed, without := l.got[0], l.got[1]; keyed.Keyless() || !keyed.RepeatsSince.IsZero() || !without.Keyless() || !without.RepeatsSince.Equal(since) {
		t.Errorf("keyed: %v since %s; without: %v since %s", keyed.Keyless(), keyed.RepeatsSince, without.Keyless(), without.RepeatsSince)
	}
	published := len(l.items)
	l.receipt.Replayed, l.receipt.RepeatOf = true, first.ID
	again := submit(Request{})
	if again.ID != first.ID || again.Messages[1].ID != first.Messages[1].ID || !again.Replayed || l.got[2].Print != l.got[1].Print || len(l.items) != published {
		t.Errorf("%+v, want %+v", again, first)
	}
	l.receipt.Replayed = false
	if flagged := submit(Request{}); flagged.ID == first.ID || flagged.RepeatOf != first.ID || len(l.items) == published {
		t.Errorf("flagged: %+v", flagged)
	}
}
