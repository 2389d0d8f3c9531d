package broker

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/stormpost/stormpost/internal/message"
)

func TestTrackerNeverPassesWhatIsUnfinished(t *testing.T) {
	tr := newTracker(1000, 1<<30)
	const n = 500
	offset := func(i int) int64 { return int64(i)*3 + 7 } // offsets may have holes
	for i := range n {
		if _, err := tr.add(t.Context(), offset(i), 1); err != nil {
			t.Fatal(err)
		}
	}
	if tr.committable() != -1 {
		t.Fatal("committable before anything is finished")
	}
	done := make([]bool, n)
	for _, i := range rand.Perm(n) {
		tr.finish(uint64(i))
		tr.finish(uint64(i)) // again does nothing
		done[i] = true
		want := int64(-1)
		for j := 0; j < n && done[j]; j++ {
			want = offset(j) + 1
		}
		if got := tr.committable(); got != want {
			t.Fatalf("committable %d, want %d", got, want)
		}
	}
}

func TestTrackerIsBounded(t *testing.T) {
	tr := newTracker(2, 100)
	ctx, cancel := context.WithCancel(t.Context())
	for i := range int64(2) {
		if _, err := tr.add(ctx, i, 10); err != nil {
			t.Fatal(err)
		}
	}
	added := make(chan error)
	go func() {
		_, err := tr.add(ctx, 2, 10)
		added <- err
	}()
	tr.finish(0)
	if err := <-added; err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := tr.add(ctx, 3, 95) // bytes bound, too
		added <- err
	}()
	cancel()
	if err := <-added; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func item(t testing.TB, content string) message.Item {
	t.Helper()
	p := message.PositionOf(message.Lane{Class: message.Trigger, Channel: message.ChannelPush}, 42, 3)
	id := message.SubmissionID(message.HashKey(1, "k"), message.FingerprintOf([]byte(content))).Message(3)
	return message.Item{Position: p, ID: id, Attempt: 1, Content: []byte(content), Trace: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
}

func TestRecordRoundTrip(t *testing.T) {
	it := item(t, `{"push":{}}`)
	m := encode("topic", it)
	got, err := decode(it.Position.Lane(), &m)
	if err != nil || got.Position != it.Position || got.ID != it.ID || got.Attempt != 1 || string(got.Content) != string(it.Content) || got.Trace != it.Trace {
		t.Fatalf("%+v %v", got, err)
	}
	it.Content = make([]byte, maxContent+1)
	m = encode("topic", it)
	if got, err := decode(it.Position.Lane(), &m); err != nil || got.Content != nil || len(m.Value) != 0 {
		t.Fatalf("a reference: %+v %v", got, err)
	}
}

func TestRecordForgeriesArePoison(t *testing.T) {
	good := item(t, "content")
	for name, forge := range map[string]func(*message.Item){
		"other lane":    func(it *message.Item) { it.Position = message.PositionOf(message.Lanes()[0], 42, 3) },
		"no lane":       func(it *message.Item) { it.Position = 0 },
		"other content": func(it *message.Item) { it.Content = []byte("forged") },
		"attempt 0":     func(it *message.Item) { it.Attempt = 0 },
		"other index":   func(it *message.Item) { it.ID = it.ID.Message(4) },
		"submission":    func(it *message.Item) { it.ID = it.ID.Submission() },
	} {
		it := good
		forge(&it)
		m := encode("topic", it)
		if _, err := decode(good.Position.Lane(), &m); err == nil {
			t.Errorf("%s passed", name)
		}
	}
}

func FuzzDecode(f *testing.F) {
	m := encode("topic", item(f, "content"))
	f.Add(m.Key, m.Headers[0].Value, m.Value)
	f.Fuzz(func(t *testing.T, key, head, value []byte) {
		m := m
		m.Key, m.Value = key, value
		m.Headers = append(m.Headers[:0:0], m.Headers...)
		m.Headers[0].Value = head
		lane := message.Lane{Class: message.Trigger, Channel: message.ChannelPush}
		it, err := decode(lane, &m)
		if err == nil && (it.Position.Lane() != lane || it.Attempt < 1 || it.Content != nil && !it.ID.Matches(message.FingerprintOf(it.Content))) {
			t.Errorf("passed: %+v", it)
		}
	})
}
