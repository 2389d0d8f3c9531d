package httpapi

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// What passes the check is decoded without an error, and its canonical form is
// that of what was decoded: encoded, decoded and encoded again it is the same.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		`{"from":"a@example.com","to":["b@example.net"],"subject":"s","text":"t","headers":{"X-A":"b"},"tags":["x"],"send_at":"2030-01-01T00:00:00Z"}`,
		`{"from":"a","attachments":[{"filename":"a","content":"aGk="}],"expires_at":"2030-01-01T00:00:00.123+02:00"}`,
		`{"platform":"fcm","to":"t","notification":{"title":"a"},"data":{"k":"v"},"collapse_key":"c"}`,
		`{"platform":"fcm","to":{"topic":"t"},"notification":null}`,
		`{"platform":"webpush","to":{"endpoint":"https://e","keys":{"auth":"a","p256dh":"b"}}}`,
		`{"channel":"email","idempotency_key":"k","from":"a"}`, `{"channel":"push","to":["x"]}`,
		`{"a":[{"b":"}\\\""}],"from":1,"to":[null,5,[]]}`, `{"subject":"\ud83d\ude00 \ud800"}`, `[]`, `{`, "{}", `{"\ud800":1,"headers":{"\udc00":"a"}}`,
		`{"data":{"from":"x","from":"y","\u0066rom":"z"}}`, `{"to":{"topic":null,"keys":null}}`,
		`{"ſubject":5,"from.x":1,"from":"a"}`, `{"send_at":"2026-12-01T00:00:00+24:00","expires_at":"0001-01-01T00:00:00,5Z"}`,
	} {
		f.Add([]byte(seed))
	}
	s := newShapes()
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, channel := range []message.Channel{message.ChannelEmail, message.ChannelPush} {
			c, wrong, err := s.decodeContent(channel, body)
			judge(t, c, wrong, err)
		}
		_, c, wrong, err := s.decodeLine(body)
		judge(t, c, wrong, err)
	})
}

func judge(t *testing.T, c *message.Content, wrong message.FieldErrors, err error) {
	if err != nil {
		if p, known := problemOf(err); !known || p.Status >= 500 {
			t.Fatalf("a request makes an unknown error: %v", err)
		}
		return
	}
	for _, w := range wrong {
		if w.Field == "" || w.Problem == "" {
			t.Fatalf("an error names no field: %+v", wrong)
		}
	}
	if len(wrong) > 0 {
		return
	}
	first, err := c.Encode()
	if err != nil {
		t.Fatalf("encode: %v", err)
	}
	again, err := message.DecodeContent(first)
	if err != nil {
		t.Fatalf("decode %s: %v", first, err)
	}
	second, err := again.Encode()
	if err != nil || !bytes.Equal(first, second) {
		t.Fatalf("canonical content isn't: %s, then %s (%v)", first, second, err)
	}
}

// The content is what was given, with nothing defaulted.
func TestDecodeAsGiven(t *testing.T) {
	s := newShapes()
	body := `{"from":"A <a@example.com>","to":["b@example.net"],"cc":null,"text":"t","html":"","class":"trigger",` +
		`"send_at":"2030-01-01T00:00:00+02:00","attachments":[{"filename":"f","content":"aGk="}],"headers":{"X-A":"b"},"tags":["x"]}`
	c, wrong, err := s.decodeContent(message.ChannelEmail, []byte(body))
	if err != nil || wrong != nil {
		t.Fatal(err, wrong)
	}
	want := message.Email{
		From: "A <a@example.com>", To: []string{"b@example.net"}, Text: "t", Headers: map[string]string{"X-A": "b"},
		Attachments: []message.Attachment{{Filename: "f", Content: []byte("hi")}},
		Options:     message.Options{Class: "trigger", SendAt: time.Date(2029, 12, 31, 22, 0, 0, 0, time.UTC), Tags: []string{"x"}},
	}
	expected, _ := json.Marshal(want)
	if !c.Email.SendAt.Equal(want.SendAt) {
		t.Errorf("send_at %v", c.Email.SendAt)
	}
	c.Email.SendAt = want.SendAt
	if got, _ := json.Marshal(c.Email); !bytes.Equal(got, expected) {
		t.Errorf("got %s, want %s", got, expected)
	}
}
