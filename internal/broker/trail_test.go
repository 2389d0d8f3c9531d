package broker

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/stormpost/stormpost/internal/message"
)

func step(n int, kind message.StepKind) message.Step {
	var id message.ID
	id[0], id[24] = byte(n), 0
	return message.Step{
		Position: message.PositionOf(message.Lane{Class: message.Transactional, Channel: message.ChannelEmail}, int64(n), 0), ID: id, Attempt: 1, Kind: kind,
		At: time.Now().UTC().Truncate(time.Microsecond), Provider: "smtp", Code: "250",
	}
}

// What is noted is read back as it was, and Then waits until Kafka has it.
func TestTrailComesBack(t *testing.T) {
	b := sharedBroker(t)
	if err := b.EnsureTrail(t.Context()); err != nil {
		t.Fatal(err)
	}
	trail, err := b.NewTrail()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	const steps = 1200 // three records
	for n := 1; n <= steps; n++ {
		trail.Note(step(n, message.StepKind(n%7)))
	}
	written := make(chan struct{})
	trail.Then(func() { close(written) })
	<-written
	read := func(from time.Time) map[message.ID]message.Step {
		all := make(map[message.ID]message.Step)
		count := 0
		if err := b.ReadTrail(t.Context(), from, func(s message.Step) error {
			all[s.ID] = s
			count++
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if count != 0 && count != steps {
			t.Errorf("%d steps were read", count)
		}
		return all
	}
	got := read(began.Add(-time.Minute))
	want := step(1200&0xff, message.StepKind(1200%7))
	if len(got) != 256 || got[want.ID].Kind != want.Kind || got[want.ID].Provider != "smtp" {
		t.Errorf("%d ids, %+v", len(got), got[want.ID])
	}
	if late := read(time.Now().Add(time.Hour)); len(late) != 0 {
		t.Errorf("from the future: %d", len(late))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := trail.Close(ctx); err != nil {
		t.Error(err)
	}
}

// What a provider answers can be anything, and a record is JSON all the same.
func TestTrailIsJSON(t *testing.T) {
	var steps []message.Step
	for i, code := range []string{"", "250", `"\u0000</script>\` + "\x00\n\u2028\U0001f4ee"} {
		s := step(i+1, message.StepKind(i+1))
		s.ID[24], s.Provider, s.Code = byte(i), code, code
		steps = append(steps, s)
	}
	m := encodeTrail(steps)
	got, err := decodeTrail(&m)
	if err != nil || !slices.Equal(got, steps) {
		t.Errorf("%+v, %v, want %+v; %s", got, err, steps, m.Value)
	}
	odd := step(1, 1)
	odd.Code = "\xff"
	m = encodeTrail([]message.Step{odd})
	if got, err := decodeTrail(&m); err != nil || got[0].Code != "\ufffd" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestOriginIsInTheRecord(t *testing.T) {
	o := message.Origin{Tenant: 7, Test: true, AcceptedAt: time.UnixMicro(1e15), ExpiresAt: time.UnixMicro(2e15), Sequence: 42}
	s := step(1, 0)
	m := encode("t", message.Item{Position: s.Position, ID: s.ID, Attempt: 1, Origin: &o})
	if got := origin(&m); got == nil || *got != o {
		t.Errorf("%+v", got)
	}
	plain := encode("t", message.Item{Position: s.Position, ID: s.ID, Attempt: 1})
	if got := origin(&plain); got != nil {
		t.Errorf("%+v", got)
	}
	for _, v := range []string{"", "{", `{"steps":[{"position":"x"}]}`, `{"steps":[{"position":"1","id":"sub_","attempt":1,"kind":"sent"}]}`} {
		bad := kafka.Message{Value: []byte(v), Headers: []kafka.Header{{Key: "ce_type", Value: []byte(attemptsType)}}}
		if _, err := decodeTrail(&bad); err == nil {
			t.Errorf("%q passed as steps", v)
		}
	}
}
