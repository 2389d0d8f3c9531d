package bench

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// bench runs over a pipe in which message i, of 100, is accepted after i+1 times
// 50 ms and handed over a second later, as often as times says.
func bench(t *testing.T, provider *Loopback, o Options, times func(i int) int) (*Result, error) {
	t.Helper()
	order := make(map[string]int) // by recipient
	for i := range 100 {
		order[recipient(i)] = i
	}
	o.Count, o.Payload, o.Streams, o.Submitters, o.Timeout = 100, 10, 3, 100, time.Minute
	return Run(t.Context(), Pipe{Provider: provider, Submit: func(_ context.Context, _ string, c *message.Content) error {
		to := c.Email.To[0]
		time.Sleep(time.Duration(order[to]+1) * 50 * time.Millisecond)
		go func() {
			time.Sleep(time.Second)
			for range times(order[to]) {
				provider.Send(t.Context(), &message.Envelope{Recipient: to}, func() error { return nil })
			}
		}()
		return nil
	}}, o)
}

func once(int) int { return 1 }

func TestRunMeasures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var progress bytes.Buffer
		r, err := bench(t, &Loopback{}, Options{Progress: &progress}, once)
		if err != nil {
			t.Fatal(err)
		}
		if want := (Latency{P50: 2550, P95: 4800, P99: 5000, Max: 5000}); r.Accept != want {
			t.Errorf("accept %+v, want %+v", r.Accept, want)
		}
		if want := (Latency{P50: 3550, P95: 5800, P99: 6000, Max: 6000}); r.EndToEnd != want {
			t.Errorf("end to end %+v, want %+v", r.EndToEnd, want)
		}
		if r.Messages != 100 || r.AcceptPerSec != 20 || r.EndPerSec != 100.0/6 || r.Elapsed != 6*time.Second {
			t.Errorf("%+v", r)
		}
		lines := strings.Split(progress.String(), "\n")
		if len(lines) < 3 || !strings.HasPrefix(lines[0], "   2s  accepted ") || !strings.HasPrefix(lines[1], "   4s  accepted ") || !strings.HasSuffix(lines[1], " of 100") {
			t.Errorf("progress %q", lines)
		}
	})
}

func TestRunKeepsARate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, err := bench(t, &Loopback{}, Options{Rate: 10}, once)
		// The last one comes 9.9 s after the first, and takes five.
		if err != nil || r.Elapsed != 15900*time.Millisecond || r.Accept.Max != 5000 {
			t.Errorf("%+v %v", r, err)
		}
	})
}

func TestRunFailsUnlessEachIsDeliveredOnce(t *testing.T) {
	for what, tc := range map[string]struct {
		times func(i int) int
		want  string
	}{
		"two twice": {func(i int) int { return 1 + (50-i%50)/50 }, "2 messages were delivered twice"},
		"one not":   {func(i int) int { return 1 - i/99 }, "99 of 100 were delivered: " + context.DeadlineExceeded.Error()},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if _, err := bench(t, &Loopback{}, Options{}, tc.times); err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("%v, want %q", err, tc.want)
				}
			})
		})
	}
}

// What comes after the last message was handed over is counted, too.
func TestDoubledAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Loopback
		_, _ = bench(t, &l, Options{}, func(i int) int { return 1 + i/99 })
		synctest.Wait()
		if err := l.Doubled(); err == nil {
			t.Error("the last message was handed over twice, and nobody says so")
		}
	})
}

func TestRunFailsWithTheFirstRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := errors.New("refused")
		_, err := Run(t.Context(), Pipe{Provider: &Loopback{}, Submit: func(context.Context, string, *message.Content) error { return refused }},
			Options{Count: 10, Payload: 1, Streams: 1, Submitters: 2, Timeout: time.Minute})
		if !errors.Is(err, refused) {
			t.Errorf("%v", err)
		}
	})
}
