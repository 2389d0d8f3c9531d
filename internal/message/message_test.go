package message

import (
	"strings"
	"testing"
	"time"
)

func full() *Content {
	return &Content{Email: &Email{
		From: "App <app@example.com>", To: []string{"a@example.com"}, Cc: []string{"b@example.com"}, Bcc: []string{"c@example.com"},
		ReplyTo: []string{"r@example.com"}, Subject: "Grüße <&>", Text: "hi", HTML: "<p>hi</p>",
		Headers:     map[string]string{"X-B": "2", "X-A": "1"},
		Attachments: []Attachment{{Filename: "a.txt", ContentType: "text/plain", ContentID: "x", Content: []byte{0, 255}}},
		Options: Options{Class: "trigger", Stream: "s", SendAt: time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC),
			ExpiresAt: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC), SupersedeKey: "k", Tags: []string{"t"}},
	}}
}

// The canonical bytes are kept, published and fingerprinted: they may never
// change, or a request repeated after an upgrade counts as another one.
func TestCanonicalContentIsPinned(t *testing.T) {
	for name, test := range map[string]struct {
		c     *Content
		bytes string
	}{
		"email": {full(),
			`{"email":{"from":"App <app@example.com>","to":["a@example.com"],"cc":["b@example.com"],"bcc":["c@example.com"],"reply_to":["r@example.com"],"subject":"Grüße <&>","text":"hi","html":"<p>hi</p>","headers":{"X-A":"1","X-B":"2"},"attachments":[{"filename":"a.txt","content_type":"text/plain","content_id":"x","content":"AP8="}],"class":"trigger","stream":"s","send_at":"2026-01-02T03:04:05.0000006Z","expires_at":"2027-01-01T00:00:00Z","supersede_key":"k","tags":["t"]}}`},
		"token": {&Content{Push: &Push{Platform: "fcm", To: Target{Token: "tok"}, Notification: &Notification{Title: "T"}, Data: map[string]string{"b": "2", "a": "1"}}},
			`{"push":{"platform":"fcm","to":"tok","notification":{"title":"T"},"data":{"a":"1","b":"2"}}}`},
		"topic": {&Content{Push: &Push{Platform: "fcm", To: Target{Topic: "news"}, CollapseKey: "c"}},
			`{"push":{"platform":"fcm","to":{"topic":"news"},"collapse_key":"c"}}`},
	} {
		b, err := test.c.Encode()
		if err != nil || string(b) != test.bytes {
			t.Errorf("%s:\n got %s\nwant %s (%v)", name, b, test.bytes, err)
		}
		again, err := DecodeContent(b)
		if err != nil {
			t.Fatal(err)
		}
		if b2, _ := again.Encode(); string(b2) != string(b) {
			t.Errorf("%s: not stable: %s", name, b2)
		}
	}
	for _, bad := range []string{"", "{}", "null", `{"email":{},"push":{}}`, "[]", `{"email":1}`} {
		if _, err := DecodeContent([]byte(bad)); err == nil {
			t.Errorf("%q passed as content", bad)
		}
	}
}

func TestSubmitIsAFunction(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	a, err := Submit(7, "key", full(), now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := Submit(7, "key", full(), now.Add(time.Hour), time.Minute)
	if a.ID() != b.ID() {
		t.Error("the same request has two ids")
	}
	if want := "sub_"; !strings.HasPrefix(a.ID().String(), want) || len(a.ID().String()) != 44 {
		t.Errorf("submission id %s", a.ID())
	}
	other := full()
	other.Email.Subject = "x"
	c, _ := Submit(7, "key", other, now, time.Hour)
	d, _ := Submit(8, "key", full(), now, time.Hour)
	if a.ID() == c.ID() || a.ID() == d.ID() || a.Key != c.Key || a.Key == d.Key {
		t.Error("ids don't tell requests and tenants apart")
	}
	if len(a.Recipients) != 3 || a.Recipients[2] != "c@example.com" || a.Lane.String() != "trigger.email" || a.Stream != "s" {
		t.Errorf("submission: %+v", a)
	}
	plain := &Content{Email: &Email{From: "a@b.c", To: []string{"d@e.f"}, Options: Options{SendAt: now.Add(2 * time.Hour)}}}
	e, _ := Submit(7, "k", plain, now, time.Hour)
	if !e.ExpiresAt.Equal(now.Add(3 * time.Hour)) {
		t.Errorf("life counts from send_at: %s", e.ExpiresAt)
	}
	if _, err := Submit(7, "", full(), now, time.Hour); err == nil {
		t.Error("a submission without a key")
	}
}

func TestIDRoundTrip(t *testing.T) {
	s, _ := Submit(7, "key", full(), time.Now(), time.Hour)
	for _, id := range []ID{s.ID(), s.ID().Message(0), s.ID().Message(49)} {
		got, err := ParseID(id.String())
		if err != nil || got != id {
			t.Errorf("%s: %v", id, err)
		}
	}
	m := s.ID().Message(3).String()
	for _, bad := range []string{"", "msg_", m[:43], m + "a", "sub_" + m[4:], "MSG_" + m[4:], strings.ToUpper(m), s.ID().Message(50).String(), "msg_" + strings.Repeat("=", 40)} {
		if _, err := ParseID(bad); err == nil {
			t.Errorf("%q passed as an id", bad)
		}
	}
	if !s.ID().Matches(s.Print) || s.ID().KeyHash() != s.Key {
		t.Error("an id doesn't know what it was made of")
	}
}

func TestPositionParts(t *testing.T) {
	var last Position
	for _, l := range Lanes() {
		for _, sub := range []int64{1, 1 << 40, MaxSubmission} {
			p := PositionOf(l, sub, 49)
			if p <= 0 || p.Lane() != l || p.Submission() != sub || p.Index() != 49 || p.Content() != PositionOf(l, sub, 0) {
				t.Errorf("%v %d: %v", l, sub, p)
			}
			if l.Channel == ChannelEmail && sub == 1 && p <= last && last != 0 {
				t.Errorf("%v is not above %v", p, last)
			}
		}
		if got, err := ParseLane(l.String()); err != nil || got != l || LaneOf(l.Code()) != l {
			t.Errorf("lane %v: %v %v", l, got, err)
		}
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("msg_abteh55t5nhfmifhhvtqs3ryexopfrztm7zr4via")
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := ParseID(s); err == nil && id.String() != s {
			t.Errorf("%q parses as %s", s, id)
		}
	})
}

func FuzzDecodeContent(f *testing.F) {
	b, _ := full().Encode()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeContent(b)
		if err != nil {
			return
		}
		once, err := c.Encode()
		if err != nil {
			return // a time out of range
		}
		again, err := DecodeContent(once)
		if err != nil {
			t.Fatalf("canonical bytes don't decode: %v", err)
		}
		if twice, _ := again.Encode(); string(twice) != string(once) {
			t.Errorf("not stable:\n%s\n%s", once, twice)
		}
	})
}

// A restored ledger may make an attempt again whose end was told. Of the two the one
// counts by which the message may have been taken, in whatever order they are told.
func TestStepsOfOneAttempt(t *testing.T) {
	step := func(attempt int, k StepKind) Step { return Step{Attempt: attempt, Kind: k} }
	order := []Step{
		step(1, StepKind(Sent)), step(2, StepClaimed), step(2, StepKind(Deferred)), step(2, StepKind(Rejected)), step(2, StepKind(Unknown)), step(2, StepKind(Sent)),
	}
	for i := range order {
		for j := range order {
			if order[i].After(order[j]) != (i > j) {
				t.Errorf("%+v after %+v: %v", order[i], order[j], i <= j)
			}
		}
	}
}
