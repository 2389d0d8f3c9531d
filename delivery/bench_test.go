package delivery

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// instantLedger answers everything at once and well.
type instantLedger struct{}

func (instantLedger) Claim(context.Context, message.Item) (message.Claim, error) {
	return message.Claim{Verdict: message.Claimed, Tenant: 1, Recipient: "a@example.net", Life: time.Hour}, nil
}
func (instantLedger) Record(context.Context, message.Report) error           { return nil }
func (instantLedger) Hold(context.Context, message.AttemptKey, string) error { return nil }
func (instantLedger) Postpone(context.Context, message.Item, time.Duration) (bool, error) {
	return false, nil
}
func (instantLedger) TenantName(context.Context, int32) (string, error)  { return "", nil }
func (instantLedger) Park(context.Context, string, []byte, string) error { return nil }
func (instantLedger) Fair(context.Context, message.Lane, int) ([]message.Item, error) {
	return nil, nil
}
func (instantLedger) Due(context.Context, message.Lane, int) ([]message.Item, error) { return nil, nil }
func (instantLedger) Unclaimed(context.Context, message.Lane, time.Duration, int) ([]message.Item, error) {
	return nil, nil
}
func (instantLedger) Content(context.Context, message.Position) ([]byte, error) {
	return nil, message.ErrNotFound
}
func (instantLedger) Beat(context.Context, []message.AttemptKey, time.Duration) error { return nil }

// BenchmarkSender is what a message costs between Offer and its record, beside
// the ledger and the provider. "decode" is the part of it that reads content.
func BenchmarkSender(b *testing.B) {
	item := newLedger(b).accept(transactional, time.Hour)
	b.Run("whole", func(b *testing.B) {
		w, err := New(Config{Ledger: instantLedger{}, Senders: map[message.Lane]int{transactional: 1000}, Routes: map[message.Channel][]Route{
			message.ChannelEmail: {{Provider: sandbox{message.ChannelEmail}, Slots: 1000}},
		}})
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithCancel(b.Context())
		ended := make(chan error)
		go func() { ended <- w.Run(ctx) }()
		var left sync.WaitGroup
		b.ReportAllocs()
		b.ResetTimer()
		for i := range b.N {
			left.Add(1)
			it := item
			it.Position = message.PositionOf(transactional, int64(i+1), 0)
			if err := w.Offer(ctx, transactional, it, left.Done); err != nil {
				b.Fatal(err)
			}
		}
		left.Wait()
		b.StopTimer()
		cancel()
		if err := <-ended; err != nil {
			b.Fatal(err)
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			if !item.ID.Matches(message.FingerprintOf(item.Content)) {
				b.Fatal("no match")
			}
			if _, err := message.DecodeContent(item.Content); err != nil {
				b.Fatal(err)
			}
		}
	})
}
