package broker

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/stormpost/stormpost/internal/devstack"
	"github.com/stormpost/stormpost/internal/devstack/teststack"
	"github.com/stormpost/stormpost/internal/message"
)

func journaled(t testing.TB, class, key, text string) message.Journaled {
	t.Helper()
	c := &message.Content{Email: &message.Email{From: "a@example.com", To: []string{"b@example.net", "c@example.net"}, Text: text, Options: message.Options{Class: class}}}
	now := time.Now().Truncate(time.Microsecond)
	s, err := message.Submit(7, key, c, now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s.RepeatsSince = now.Add(-time.Hour)
	s.Trace, s.Test = "00-00000000000000000000000000000001-0000000000000001-01", true
	return message.Journaled{Submission: s, AcceptedAt: now}
}

func TestJournaledRoundTrip(t *testing.T) {
	j := journaled(t, "trigger", "k", "hello")
	m := encodeJournaled("t", j)
	got, err := decodeJournaled(message.Trigger, &m)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprintf("%+v", *got.Submission) != fmt.Sprintf("%+v", *j.Submission) || !got.AcceptedAt.Equal(j.AcceptedAt) {
		t.Errorf("got  %+v\nwant %+v", *got.Submission, *j.Submission)
	}
	for name, change := range map[string]func(v []byte) []byte{
		"empty":       func([]byte) []byte { return nil },
		"head alone":  func(v []byte) []byte { return v[:journalHead] },
		"version":     func(v []byte) []byte { v[0]++; return v },
		"lane":        func(v []byte) []byte { v[2]++; return v },
		"recipients":  func(v []byte) []byte { v[3]++; return v },
		"tenant":      func(v []byte) []byte { clear(v[4:8]); return v },
		"fingerprint": func(v []byte) []byte { v[40]++; return v },
		"content":     func(v []byte) []byte { return v[:len(v)-1] },
	} {
		bad := encodeJournaled("t", j)
		bad.Value = change(bad.Value)
		if _, err := decodeJournaled(message.Trigger, &bad); err == nil {
			t.Errorf("%s: passed", name)
		}
	}
	if _, err := decodeJournaled(message.Campaign, &m); err == nil {
		t.Error("passed in another class's journal")
	}
}

// What can't be read as a submission tells whose it was all the same, if its head and
// its key agree.
func TestPoisonTellsItsSubmission(t *testing.T) {
	j := journaled(t, "trigger", "k", "hello")
	for name, test := range map[string]struct {
		change func(m *kafka.Message)
		told   bool
	}{
		"its content is damaged":        {func(m *kafka.Message) { m.Value = m.Value[:len(m.Value)-1] }, true},
		"its key is another one":        {func(m *kafka.Message) { m.Key = []byte("no") }, false},
		"its head is cut off":           {func(m *kafka.Message) { m.Value = m.Value[:journalHead] }, false},
		"it has no tenant":              {func(m *kafka.Message) { clear(m.Value[4:8]) }, false},
		"its lane is none":              {func(m *kafka.Message) { m.Value[2] = 4 }, false},
		"it has too many recipients":    {func(m *kafka.Message) { m.Value[3] = message.MaxRecipients + 1 }, false},
		"it has none, or can't tell":    {func(m *kafka.Message) { m.Value[3] = 0 }, false},
		"its version is one to come":    {func(m *kafka.Message) { m.Value[0]++ }, false},
		"its head's key is another one": {func(m *kafka.Message) { m.Value[24]++ }, false},
	} {
		m := encodeJournaled("t", j)
		test.change(&m)
		d := &drain{news: make(chan struct{}, 1)}
		if err := (journalTaker{JournalHandler: d}).Park(t.Context(), Poison{Key: m.Key, Value: m.Value}); err != nil {
			t.Fatal(err)
		}
		got := d.parked[0].Journaled
		if (got != nil) != test.told {
			t.Errorf("%s: %+v", name, got)
		}
		if test.told && (got.ID() != j.ID() || got.Tenant != 7 || got.Lane != j.Lane || len(got.Recipients) != 2 || !got.AcceptedAt.Equal(j.AcceptedAt)) {
			t.Errorf("%s: %+v", name, got.Submission)
		}
	}
}

func FuzzDecodeJournaled(f *testing.F) {
	f.Add(encodeJournaled("t", journaled(f, "", "k", "hello")).Value)
	f.Fuzz(func(t *testing.T, v []byte) {
		m := kafka.Message{Value: v}
		j, err := decodeJournaled(message.Transactional, &m)
		if err == nil && j.Print != message.FingerprintOf(j.Content) {
			t.Error("its fingerprint is another one")
		}
	})
}

// drain collects what a journal brings.
type drain struct {
	mu     sync.Mutex
	got    map[message.KeyHash]JournalRecord
	parked []Poison
	finish bool
	news   chan struct{}
}

func (d *drain) Enter(_ context.Context, r JournalRecord, finish func()) {
	d.mu.Lock()
	d.got[r.Key] = r
	d.mu.Unlock()
	if d.finish {
		finish()
	}
	d.news <- struct{}{}
}

func (d *drain) Park(_ context.Context, p Poison) error {
	d.mu.Lock()
	d.parked = append(d.parked, p)
	d.mu.Unlock()
	d.news <- struct{}{}
	return nil
}

func (d *drain) wait(t *testing.T, n int) {
	t.Helper()
	for range n {
		select {
		case <-d.news:
		case <-patient(t).Done():
			t.Fatal("no more came")
		}
	}
}

func runJournal(t *testing.T, b *Broker, d *drain) (stop func()) {
	t.Helper()
	c, err := b.NewJournalConsumer()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx, d) }()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	t.Cleanup(stop)
	return stop
}

func runTail(t *testing.T, b *Broker) *Tail {
	t.Helper()
	tail := b.NewTail()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = tail.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	if err := tail.Current(patient(t), time.Now()); err != nil {
		t.Fatal(err)
	}
	return tail
}

// What is appended is told by every tail, also one that begins later, until it
// is finished; it comes to the consumer, whole, and poison doesn't hold it up.
func testJournal(t *testing.T, b *Broker) {
	if err := b.EnsureJournals(patient(t)); err != nil {
		t.Fatal(err)
	}
	early := runTail(t, b)
	mine := b.NewTail()
	w, err := b.NewJournal(mine)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	var all []message.Journaled
	for i, class := range []string{"transactional", "trigger", "campaign"} {
		write(t, b, kafka.Message{Topic: b.journalTopic(message.Class(i + 1)), Key: []byte("no"), Value: []byte("record")})
		all = append(all, journaled(t, class, class, "hello"))
	}
	all = append(all, journaled(t, "campaign", "large", strings.Repeat("x", maxBody)))
	for _, j := range all {
		if err := w.Append(patient(t), j); err != nil {
			t.Fatal(err)
		}
	}
	if j, known := mine.Find(all[0].ID().Message(1)); j == nil || !known || j.Tenant != 7 {
		t.Error("its writer doesn't tell of it at once")
	}
	if js, known := mine.Under(all[0].Key); len(js) != 1 || !known || js[0].ID() != all[0].ID() || js[0].Tenant != 7 {
		t.Errorf("by its key: %v %v", js, known)
	}
	if js, known := mine.Under(message.KeyHash{1}); len(js) != 0 || known {
		t.Errorf("by a key that it doesn't know, and can't: %v %v", js, known)
	}
	tells := func(tail *Tail, want bool) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			n := 0
			for _, j := range all {
				if got, _ := tail.Find(j.ID().Message(0)); got != nil && got.Lane == j.Lane && got.AcceptedAt.Equal(j.AcceptedAt) {
					n++
				}
			}
			if want && n == len(all) || !want && n == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d of %d are told; wanted: %v", n, len(all), want)
			}
		}
	}
	tells(early, true)
	late := runTail(t, b)
	tells(late, true)
	if j, known := late.Find(all[0].ID().Message(2)); j != nil || !known {
		t.Error("a recipient that isn't there is told, or not known")
	}
	if js, known := late.Under(message.KeyHash{1}); len(js) != 0 || !known {
		t.Errorf("by a key that isn't there: %v %v", js, known)
	}
	lanes, _, known := late.Lanes()
	var n int64
	for _, count := range lanes {
		n += count
	}
	if want := int64(len(all[0].Recipients)); lanes[all[0].Lane] != want || n != want*int64(len(all)) || !known {
		t.Errorf("only journaled: %v %v", lanes, known)
	}

	first := &drain{got: make(map[message.KeyHash]JournalRecord), news: make(chan struct{}, 100)}
	stop := runJournal(t, b, first)
	first.wait(t, len(all)+3)
	stop() // finished nothing: all come again
	second := &drain{got: make(map[message.KeyHash]JournalRecord), news: make(chan struct{}, 100), finish: true}
	stop = runJournal(t, b, second)
	second.wait(t, len(all))
	tells(early, false)
	stop()
	for _, j := range all {
		if got := second.got[j.Key]; got.Journaled.Submission == nil || string(got.Content) != string(j.Content) || got.Trace != j.Trace {
			t.Errorf("%s didn't come, or changed", j.ID())
		}
	}
	if len(first.parked) != 3 || string(first.parked[0].Value) != "record" {
		t.Errorf("parked: %+v", first.parked)
	}
	left, done, err := b.JournalBacklog(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	for c := message.Transactional; c <= message.Campaign; c++ {
		if left[c] != 0 || done[c] == 0 {
			t.Errorf("%s: %d left, %d done", c, left[c], done[c])
		}
	}
}

func TestJournal(t *testing.T) { testJournal(t, sharedBroker(t)) }

func TestJournalOnKfake(t *testing.T) {
	k, err := devstack.StartBroker(devstack.BrokerConfig{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	testJournal(t, newBroker(t, []string{k.Addr()}))
}

// The journals are made as safe as the cluster allows.
func TestJournalTopics(t *testing.T) {
	b := sharedBroker(t)
	if err := b.EnsureJournals(patient(t)); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"retention.ms": "-1", "retention.bytes": "-1", "min.insync.replicas": "1", "unclean.leader.election.enable": "false",
		"flush.messages": "1", "max.message.bytes": fmt.Sprint(maxJournal), "cleanup.policy": "delete",
	}
	got := make(map[string]string)
	if err := b.withClient(func(c *kafka.Client) error {
		resp, err := c.DescribeConfigs(patient(t), &kafka.DescribeConfigsRequest{Resources: []kafka.DescribeConfigRequestResource{
			{ResourceType: kafka.ResourceTypeTopic, ResourceName: b.journalTopic(message.Campaign)}}})
		if err != nil {
			return err
		}
		for _, r := range resp.Resources {
			for _, e := range r.ConfigEntries {
				if _, ok := want[e.ConfigName]; ok {
					got[e.ConfigName] = e.ConfigValue
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// Also while the journal grows all the time, and its end is out of reach, a tail
// is current within moments: what was written before is found then.
func TestTailIsCurrentInTheFlow(t *testing.T) {
	b := newBroker(t, teststack.Kafka(t))
	if err := b.EnsureJournals(patient(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.RemoveTopics(context.Background()) })
	w, err := b.NewJournal(b.NewTail())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	ctx, end := context.WithCancel(t.Context())
	var flow sync.WaitGroup
	for writer := range 24 {
		flow.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				_ = w.Append(ctx, journaled(t, "transactional", fmt.Sprint(writer, "-", i), "x"))
			}
		})
	}
	defer func() {
		end()
		flow.Wait()
	}()
	tail := runTail(t, b)
	for i := range 5 {
		j := journaled(t, "transactional", fmt.Sprint("mine-", i), "x")
		if err := w.Append(patient(t), j); err != nil {
			t.Fatal(err)
		}
		at := time.Now()
		limit, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		err := tail.Current(limit, at)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if found, known := tail.Find(j.ID()); found == nil || !known {
			t.Errorf("after %v: it is current, and doesn't find what was written before; known: %v", time.Since(at), known)
		}
	}
}
