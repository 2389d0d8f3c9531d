package broker

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/segmentio/kafka-go"

	"github.com/stormpost/stormpost/internal/message"
)

func TestEveryLaneArrivesAsItWas(t *testing.T) {
	b := sharedBroker(t)
	in := newInbox(t)
	p := publisher(t, b)
	var all []message.Item
	for _, lane := range message.Lanes() {
		all = append(all, items(lane, 1, 100, 50)...)
	}
	all[0].Trace = ""
	all[1].Attempt = 3
	p.Publish(all)
	_, stop := consume(t, b, in)
	in.all(t, all)
	stop()
	for _, want := range all {
		got := in.last[want.Position]
		if got.ID != want.ID || got.Attempt != want.Attempt || string(got.Content) != string(want.Content) || got.Trace != want.Trace {
			t.Fatalf("got %+v, want %+v", got, want)
		}
	}
	if n, each := backlog(t, b); n != 0 {
		t.Errorf("a backlog of %v after everything was finished", each)
	}
}

func TestUnfinishedComeAgain(t *testing.T) {
	b := sharedBroker(t, func(c *Config) { c.Partitions = 2 })
	all := items(urgent, 1, 400, 50)
	msgs := make([]kafka.Message, len(all))
	for i, it := range all {
		msgs[i] = encode(b.Topic(urgent), it)
	}
	write(t, b, msgs...) // in order, as a publisher doesn't

	// Kept are two in the middle: one in each partition.
	first := newInbox(t)
	kept := map[message.Position]bool{all[200].Position: true, all[201].Position: true}
	first.keep = func(r *Record) bool { return kept[r.Position] }
	_, stop := consume(t, b, first)
	first.all(t, all)
	stop()
	// Beyond the kept ones nothing is committed, whatever is finished there.
	if _, each := backlog(t, b); each[urgent] != 200 {
		t.Errorf("the backlog is %d, want 200", each[urgent])
	}

	second := newInbox(t)
	_, stop = consume(t, b, second)
	second.all(t, all[200:])
	stop()
	if n, each := backlog(t, b); n != 0 {
		t.Errorf("a backlog of %v after everything was finished", each)
	}
}

func TestMembersComeAndGo(t *testing.T) {
	b := sharedBroker(t)
	in := newInbox(t)
	_, _ = consume(t, b, in)
	p := publisher(t, b)

	const rounds, each = 4, 3000
	var all []message.Item
	for round := range rounds {
		_, stop := consume(t, b, in)
		for i := range each / 100 {
			part := items(message.Lanes()[i%6], 1+(round*each/100+i)*100, 100, 500)
			all = append(all, part...)
			p.Publish(part)
		}
		if round%2 == 0 {
			in.all(t, all) // leaves idle; in the other rounds with much under way
		}
		stop()
	}
	in.all(t, all)
}

func TestCommitsOfWhatIsFinishedOnly(t *testing.T) {
	b := sharedBroker(t)
	all := items(urgent, 1, 1000, 50)
	publisher(t, b).Publish(all)
	none := newInbox(t)
	none.keep = func(*Record) bool { return true }
	_, stop := consume(t, b, none)
	none.all(t, all)
	// A second member takes partitions over, and finishes nothing either.
	other := newInbox(t)
	other.keep = none.keep
	_, stopOther := consume(t, b, other)
	stop()
	other.all(t, all)
	stopOther()
	if _, each := backlog(t, b); each[urgent] != int64(len(all)) {
		t.Errorf("the backlog is %d, want %d", each[urgent], len(all))
	}
}

func TestLateFinishAfterTheGenerationEnded(t *testing.T) {
	b := sharedBroker(t)
	all := items(urgent, 1, 100, 50)
	publisher(t, b).Publish(all)
	var mu sync.Mutex
	var late []*Record
	in := newInbox(t)
	in.keep = func(r *Record) bool {
		mu.Lock()
		defer mu.Unlock()
		late = append(late, r)
		return true
	}
	_, stop := consume(t, b, in)
	in.all(t, all)
	stop()
	for _, r := range late {
		r.Finish()
	}
	if _, each := backlog(t, b); each[urgent] != int64(len(all)) {
		t.Errorf("the backlog is %d, want %d: nobody owns these partitions", each[urgent], len(all))
	}
}

func TestBlockedLaneHoldsUpNoOther(t *testing.T) {
	b := sharedBroker(t)
	in := newInbox(t)
	var blocked sync.Once
	stuck := make(chan struct{})
	in.hold = func(ctx context.Context, lane message.Lane) {
		if lane == later {
			blocked.Do(func() { close(stuck) })
			<-ctx.Done()
		}
	}
	_, stop := consume(t, b, in)
	p := publisher(t, b)
	flood, few := items(later, 1, 2000, 50), items(urgent, 1, 200, 50)
	p.Publish(flood)
	<-stuck
	p.Publish(few)
	in.all(t, few)
	stop() // returns though a handler blocks
	if len(in.seen) != len(few) {
		t.Errorf("%d seen, want %d", len(in.seen), len(few))
	}
}

func TestPoisonIsParkedAndPassed(t *testing.T) {
	b := sharedBroker(t, func(c *Config) { c.Partitions = 1 })
	good := items(urgent, 1, 20, 50)
	topic := b.Topic(urgent)
	forged := encode(topic, good[0])
	forged.Value = []byte("another content")
	msgs := []kafka.Message{
		encode(topic, good[0]),
		{Topic: topic, Key: []byte("k"), Value: []byte("not ours"), Headers: []kafka.Header{{Key: "h", Value: []byte("v")}}},
		forged,
	}
	for _, it := range good[1:] {
		msgs = append(msgs, encode(topic, it))
	}
	write(t, b, msgs...)

	in := newInbox(t)
	var tries atomic.Int32
	in.park = func(Poison) error {
		if tries.Add(1) < 3 {
			return errors.New("the ledger is away")
		}
		return nil
	}
	_, stop := consume(t, b, in)
	in.all(t, good)
	stop()
	if len(in.parked) != 2 {
		t.Fatalf("%d parked, want 2: %+v", len(in.parked), in.parked)
	}
	p := in.parked[0]
	if p.Topic != topic || p.Partition != 0 || p.Offset != 1 || string(p.Key) != "k" || string(p.Value) != "not ours" || string(p.Headers["h"]) != "v" || p.Reason == "" {
		t.Errorf("parked %+v", p)
	}
	if n, _ := backlog(t, b); n != 0 {
		t.Errorf("a backlog of %d", n)
	}
}

func TestPoisonThatCannotBeParkedComesAgain(t *testing.T) {
	b := sharedBroker(t, func(c *Config) { c.Partitions = 1 })
	write(t, b, kafka.Message{Topic: b.Topic(urgent), Key: []byte("k")})
	in := newInbox(t)
	tried := make(chan struct{}, 100)
	in.park = func(Poison) error {
		tried <- struct{}{}
		return errors.New("the ledger is away")
	}
	_, stop := consume(t, b, in)
	<-tried
	stop()
	if n, _ := backlog(t, b); n != 1 {
		t.Fatalf("a backlog of %d, want the one that was not parked", n)
	}
	in.park = nil
	_, _ = consume(t, b, in)
	in.until(t, "the poison", func() bool { return len(in.parked) == 1 })
}
