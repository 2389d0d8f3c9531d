package broker

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/segmentio/kafka-go"
)

// A kept client is used again, until it fails, hangs, is old or nobody needs it; a
// new one decides.
func TestKept(t *testing.T) {
	t.Parallel()
	b, err := New(Config{Brokers: []string{"127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		var k kept
		with := func(old func(ctx context.Context) error) (used []*kafka.Client, err error) {
			err = k.with(t.Context(), b, func(ctx context.Context, c *kafka.Client) error {
				used = append(used, c)
				if len(used) == 1 {
					return old(ctx)
				}
				return ctx.Err()
			})
			return used, err
		}
		fine := func(context.Context) error { return nil }
		one := func() *kafka.Client {
			used, err := with(fine)
			if err != nil || len(used) != 1 {
				t.Fatalf("asked %d: %v", len(used), err)
			}
			return used[0]
		}
		first := one()
		if one() != first {
			t.Error("a client that works is not kept")
		}
		for name, old := range map[string]func(context.Context) error{
			"fails": func(context.Context) error { return errors.New("it fails") },
			"hangs": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		} {
			was := one()
			used, err := with(old)
			if err != nil || len(used) != 2 || used[0] != was || used[1] == was {
				t.Errorf("one that %s: asked %d: %v", name, len(used), err)
			}
			if one() != used[1] {
				t.Errorf("after one that %s, the new one is not kept", name)
			}
		}
		was := one()
		time.Sleep(keptIdle + time.Second)
		if one() == was {
			t.Error("one that nobody used is there still")
		}
		was = one()
		for range int(keptAge/time.Second) + 2 {
			time.Sleep(time.Second)
			one()
		}
		if one() == was {
			t.Error("an old one is there still")
		}
		k.clear()
		if len(k.idle) > 0 {
			t.Error("it isn't clear")
		}
		time.Sleep(keptIdle + time.Second)
	})
}
