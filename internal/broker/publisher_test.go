package broker

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/stormpost/stormpost/internal/message"
)

// script is a writer that answers as it is told, and keeps what it took.
type script struct {
	write func(ctx context.Context, topic string, n int, msgs []kafka.Message) error // n counts from 1

	mu    sync.Mutex
	calls int
	took  []kafka.Message
}

func (s *script) WriteMessages(ctx context.Context, msgs ...kafka.Message) error {
	s.mu.Lock()
	s.calls++
	n := s.calls
	s.mu.Unlock()
	var err error
	if s.write != nil {
		err = s.write(ctx, msgs[0].Topic, n, msgs)
	}
	var each kafka.WriteErrors
	partial := errors.As(err, &each)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, m := range msgs {
		if err == nil || partial && each[i] == nil {
			m.Headers = append([]kafka.Header(nil), m.Headers...)
			s.took = append(s.took, m)
		}
	}
	return err
}

func scripted(t *testing.T, s *script) (p *Publisher, log lines) {
	t.Helper()
	log = newLines()
	b := newBroker(t, []string{"127.0.0.1:9"}, func(c *Config) { c.Logger = slog.New(log) })
	p, err := b.newPublisher(s, func() error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	return p, log
}

func closeIn(t *testing.T, p *Publisher, d time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	return p.Close(ctx)
}

func TestPublishTriesAgainWhatFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{}
		s.write = func(_ context.Context, _ string, n int, msgs []kafka.Message) error {
			switch n {
			case 1:
				return errors.New("no broker")
			case 2: // every other one fails
				each := make(kafka.WriteErrors, len(msgs))
				for i := range each {
					if i%2 == 1 {
						each[i] = kafka.NotEnoughReplicas
					}
				}
				return each
			}
			return nil
		}
		p, _ := scripted(t, s)
		p.Publish(items(urgent, 1, 10, 10))
		if err := closeIn(t, p, time.Minute); err != nil {
			t.Fatal(err)
		}
		if len(s.took) != 10 {
			t.Errorf("took %d, want each of 10 once", len(s.took))
		}
	})
}

func TestPublishGivesUpToTheCursor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{write: func(context.Context, string, int, []kafka.Message) error { return errors.New("no broker") }}
		p, log := scripted(t, s)
		began := time.Now()
		p.Publish(items(urgent, 1, 10, 10))
		if err := closeIn(t, p, time.Minute); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < publishAge/2 || took > 2*publishAge {
			t.Errorf("gave up after %s", took)
		}
		log.wait(t, "not published")
	})
}

func TestPublishNeverBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s := &script{}
		s.write = func(_ context.Context, topic string, _ int, _ []kafka.Message) error {
			if topic != "" && topic[len(topic)-len("campaign.email"):] == "campaign.email" {
				<-release
			}
			return nil
		}
		p, log := scripted(t, s)
		began := time.Now()
		flood := items(later, 1, 2*bufferRecords, 10)
		p.Publish(flood)
		// The lane that waits for its leader costs another nothing.
		p.Publish(items(urgent, 1, 100, 10))
		if time.Since(began) != 0 {
			t.Error("Publish waited")
		}
		time.Sleep(flushLinger)
		synctest.Wait()
		s.mu.Lock()
		if len(s.took) != 100 {
			t.Errorf("%d of the other lane's 100 were written", len(s.took))
		}
		s.mu.Unlock()
		log.wait(t, "not published")
		close(release)
		if err := closeIn(t, p, time.Minute); err != nil {
			t.Fatal(err)
		}
		if n := len(s.took) - 100; n < bufferRecords || n > bufferRecords+flushers*flushRecords {
			t.Errorf("%d of the flood were kept, want what the buffer holds", n)
		}
	})
}

func TestPublisherIsBoundedInBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s := &script{write: func(context.Context, string, int, []kafka.Message) error {
			<-release
			return nil
		}}
		p, _ := scripted(t, s)
		all := items(urgent, 1, 1, maxContent-100)
		for range 100 {
			p.Publish(all)
		}
		great := items(urgent, 2, 1, maxContent+1) // goes as a reference, and needs no room
		p.Publish(great)
		synctest.Wait()
		close(release)
		if err := closeIn(t, p, time.Minute); err != nil {
			t.Fatal(err)
		}
		if n := len(s.took) - 1; n != bufferBytes/len(all[0].Content) {
			t.Errorf("%d records of 1 MiB were kept", n)
		}
		// The room is given back.
		for lane, q := range p.queues {
			if n := q.bytes.Load(); n != 0 {
				t.Errorf("%s still counts %d bytes", lane, n)
			}
		}
	})
}

func TestPublishRefersWhereATopicTakesLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{}
		s.write = func(_ context.Context, _ string, n int, msgs []kafka.Message) error {
			if n > 1 {
				return nil
			}
			each := make(kafka.WriteErrors, len(msgs))
			for i := range each {
				each[i] = kafka.MessageSizeTooLarge
			}
			return each
		}
		p, _ := scripted(t, s)
		want := items(urgent, 1, 1, 1000)[0]
		p.Publish([]message.Item{want})
		if err := closeIn(t, p, time.Minute); err != nil {
			t.Fatal(err)
		}
		if len(s.took) != 1 {
			t.Fatalf("took %d", len(s.took))
		}
		got, err := decode(urgent, &s.took[0])
		if err != nil || got.ID != want.ID || got.Content != nil {
			t.Errorf("%+v %v", got, err)
		}
	})
}

func TestCloseCutsWhatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{write: func(ctx context.Context, _ string, _ int, _ []kafka.Message) error {
			<-ctx.Done()
			return ctx.Err()
		}}
		p, _ := scripted(t, s)
		p.Publish(items(urgent, 1, 5000, 10))
		began := time.Now()
		if err := closeIn(t, p, time.Second); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close: %v", err)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("Close took %s", took)
		}
		p.Publish(items(urgent, 1, 1, 10)) // dropped, harmlessly
		if err := closeIn(t, p, time.Second); err != nil {
			t.Errorf("Close again: %v", err)
		}
	})
}

// Kafka holds max.message.bytes against a batch, so batches must fit it, too.
func TestGreatContentArrives(t *testing.T) {
	b := sharedBroker(t, func(c *Config) { c.Partitions = 1 })
	in := newInbox(t)
	many := items(urgent, 1, 1000, 10<<10)
	most := items(urgent, 10_000, 4, maxContent-100)
	beyond := items(urgent, 20_000, 2, maxContent+1)
	p := publisher(t, b)
	p.Publish(many)
	p.Publish(most)
	p.Publish(beyond)
	_, stop := consume(t, b, in)
	in.all(t, many, most, beyond)
	stop()
	for _, it := range append(many, most...) {
		if string(in.last[it.Position].Content) != string(it.Content) {
			t.Fatalf("%s lost its content", it.Position)
		}
	}
	for _, it := range beyond {
		if in.last[it.Position].Content != nil {
			t.Errorf("%s carries %d bytes", it.Position, len(in.last[it.Position].Content))
		}
	}
}
