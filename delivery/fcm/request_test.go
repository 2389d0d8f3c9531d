package fcm

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

func TestEncode(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	id := envelope().ID.String()
	tests := map[string]struct {
		class message.Class
		push  message.Push
		ends  time.Time
		want  string
	}{
		"everything": {
			message.Transactional,
			message.Push{
				To:           message.Target{Token: "device-1"},
				Notification: &message.Notification{Title: "T", Body: "B", Image: "https://i.example/1.png"},
				Data:         map[string]string{"order": "7", "stormpost_id": "forged"}, CollapseKey: "code",
			},
			now.Add(90*time.Second + 999*time.Millisecond),
			`{"message":{"token":"device-1","notification":{"title":"T","body":"B","image":"https://i.example/1.png"},
			  "data":{"order":"7","stormpost_id":"` + id + `"},
			  "android":{"collapse_key":"code","priority":"HIGH","ttl":"90s"},
			  "apns":{"headers":{"apns-priority":"10","apns-collapse-id":"code","apns-expiration":"1795521690"}},
			  "webpush":{"headers":{"TTL":"90"}}}}`,
		},
		"data alone, to a topic, for longer than FCM keeps it": {
			message.Campaign,
			message.Push{To: message.Target{Topic: "news"}, Data: map[string]string{"k": "v"}, CollapseKey: strings.Repeat("c", 65)},
			now.Add(60 * 24 * time.Hour),
			`{"message":{"topic":"news","data":{"k":"v","stormpost_id":"` + id + `"},
			  "android":{"collapse_key":"` + strings.Repeat("c", 65) + `","priority":"NORMAL","ttl":"2419200s"},
			  "apns":{"headers":{"apns-priority":"5","apns-expiration":"1800705600"}},
			  "webpush":{"headers":{"TTL":"2419200"}}}}`,
		},
		"past its life": {
			message.Trigger,
			message.Push{To: message.Target{Token: "d"}, Notification: &message.Notification{Body: "B"}},
			now.Add(-time.Second),
			`{"message":{"token":"d","notification":{"body":"B"},"data":{"stormpost_id":"` + id + `"},
			  "android":{"priority":"NORMAL","ttl":"0s"},
			  "apns":{"headers":{"apns-priority":"5","apns-expiration":"1795521599"}},
			  "webpush":{"headers":{"TTL":"0"}}}}`,
		},
		"without an end, urgent data": {
			message.Transactional,
			message.Push{To: message.Target{Token: "d"}, Data: map[string]string{"k": "v"}},
			time.Time{},
			`{"message":{"token":"d","data":{"k":"v","stormpost_id":"` + id + `"},
			  "android":{"priority":"HIGH"},"apns":{"headers":{"apns-priority":"5"}}}}`,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			env := envelope()
			env.Position = message.PositionOf(message.Lane{Class: tc.class, Channel: message.ChannelPush}, 1, 0)
			env.Content.Push = &tc.push
			env.ExpiresAt = tc.ends
			got, err := encode(env, now)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(decode(t, got), decode(t, []byte(tc.want))) {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
			if tc.push.Data["stormpost_id"] == id {
				t.Error("the content's own data was changed")
			}
		})
	}
}

func decode(t *testing.T, b []byte) (v any) {
	t.Helper()
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return v
}

// What FCM could never take is rejected before last, without a request.
func TestNotForFCM(t *testing.T) {
	var s server
	s.start(t, false)
	p := s.provider(t, nil)
	for name, c := range map[string]*message.Content{
		"nothing":      nil,
		"email":        {Email: &message.Email{}},
		"nobody":       {Push: &message.Push{}},
		"web endpoint": {Push: &message.Push{To: message.Target{Endpoint: "https://push.example/1"}}},
		"two targets":  {Push: &message.Push{To: message.Target{Token: "a", Topic: "b"}}},
	} {
		slot, err := p.Reserve(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		env := envelope()
		env.Content = c
		if res := slot.Send(t.Context(), env, func() error { t.Errorf("%s: last was called", name); return nil }); res.Outcome != message.Rejected {
			t.Errorf("%s: %+v", name, res)
		}
		slot.Release()
	}
	if hits, _, _ := s.counts(); hits != 0 {
		t.Errorf("%d requests", hits)
	}
}

func TestCheck(t *testing.T) {
	overhead := len("stormpost_id") + len(envelope().ID.String()) + len("k")
	push := func(to message.Target, size int) *message.Push {
		return &message.Push{To: to, Data: map[string]string{"k": strings.Repeat("x", size-overhead)}}
	}
	token, topic := message.Target{Token: "d"}, message.Target{Topic: "news"}
	for _, tc := range []struct {
		push *message.Push
		size int
		ok   bool
	}{
		{push(token, 4096), 4096, true},
		{push(token, 4097), 4097, false},
		{push(topic, 2048), 2048, true},
		{push(topic, 2049), 2049, false},
	} {
		if got := PayloadSize(tc.push); got != tc.size {
			t.Errorf("size %d, want %d", got, tc.size)
		}
		err := Check(tc.push)
		var fields message.FieldErrors
		if (err == nil) != tc.ok || err != nil && (!errors.As(err, &fields) || fields[0].Field != "data") {
			t.Errorf("%d bytes to %s: %v", tc.size, tc.push.To, err)
		}
	}
	big := &message.Push{To: token, Notification: &message.Notification{Title: "T", Body: strings.Repeat("é", 2020)}}
	if err := Check(big); err == nil || !strings.HasPrefix(err.Error(), "notification: ") {
		t.Errorf("a notification of %d bytes: %v", PayloadSize(big), err)
	}
}
