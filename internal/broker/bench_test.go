package broker

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// BenchmarkPublish is for 1 KiB of content, on the stores of the tests.
func BenchmarkPublish(b *testing.B) {
	br := sharedBroker(b)
	p, err := br.NewPublisher()
	if err != nil {
		b.Fatal(err)
	}
	all := items(urgent, 1, 1000, 1000)
	room := p.queues[urgent]
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; n += len(all) {
		for room.bytes.Load() > bufferBytes/2 || len(room.in) > bufferRecords/2 {
			time.Sleep(100 * time.Microsecond) // else it would drop them
		}
		p.Publish(all[:min(len(all), b.N-n)])
	}
	if err := p.Close(patient(b)); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
	if n, _ := backlog(b, br); n != int64(b.N) {
		b.Errorf("%d records are there, want %d", n, b.N)
	}
}

type counter struct {
	left atomic.Int64
	done chan struct{}
}

func (c *counter) Park(context.Context, Poison) error { return nil }

func (c *counter) Handle(_ context.Context, _ message.Lane, r *Record) {
	r.Finish()
	if c.left.Add(-1) == 0 {
		close(c.done)
	}
}

// BenchmarkConsume reads and finishes 1 KiB records that are there already.
func BenchmarkConsume(b *testing.B) {
	br := sharedBroker(b)
	all := items(urgent, 1, 1000, 1000)
	for n := 0; n < b.N; {
		p, err := br.NewPublisher()
		if err != nil {
			b.Fatal(err)
		}
		for range 10 {
			p.Publish(all[:min(len(all), b.N-n)])
			n += min(len(all), b.N-n)
		}
		if err := p.Close(patient(b)); err != nil {
			b.Fatal(err)
		}
	}
	c := &counter{done: make(chan struct{})}
	c.left.Store(int64(b.N))
	b.ReportAllocs()
	b.ResetTimer()
	_, stop := consume(b, br, c)
	<-c.done
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
	stop()
}
