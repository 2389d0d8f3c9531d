//go:build linux

package promise

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/devstack/teststack"
)

// 100 concurrent requests with one key: one message, one number, one delivery,
// 99 replays; another body: 422. Through one API process, and through three.
func TestOneKeyIsOneMessage(t *testing.T) {
	for _, processes := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d processes", processes), func(t *testing.T) {
			s := newStage(t)
			var apis []string
			for range processes {
				apis = append(apis, s.start("api").api)
			}
			s.start("worker")
			var next atomic.Int64
			c := newClient(t, s.key, func() string { return apis[int(next.Add(1))%len(apis)] })
			for round := range teststack.Scaled(16) {
				o := order{Name: fmt.Sprintf("once-%d", round), Push: round%2 == 1}
				var wg sync.WaitGroup
				answers := make([]answer, 100)
				for i := range answers {
					wg.Go(func() {
						a, err := c.post(t.Context(), apis[i%len(apis)], o, o.Name)
						if err != nil {
							t.Error(err)
						}
						answers[i] = a
					})
				}
				wg.Wait()
				fresh := 0
				for _, a := range answers {
					switch {
					case a.status == http.StatusAccepted:
						fresh++
					case a.status != http.StatusOK:
						t.Fatalf("status %d", a.status)
					}
					if a.ID != answers[0].ID || len(a.Messages) != 1 || a.Messages[0].ID != answers[0].Messages[0].ID || a.Messages[0].Sequence != int64(round+1) {
						t.Fatalf("answers differ: %+v %+v", a, answers[0])
					}
				}
				if fresh != 1 {
					t.Fatalf("%d of 100 were fresh", fresh)
				}
				other := o
				other.Class = "campaign"
				for _, api := range apis {
					if a, err := c.post(t.Context(), api, other, o.Name); err != nil || a.status != http.StatusUnprocessableEntity {
						t.Fatalf("another body under the key: %d %v", a.status, err)
					}
				}
				if err := c.remember(o.Name); err != nil {
					t.Fatal(err)
				}
			}
			if v := s.settle(c, c.urls, time.Minute); len(v.doubts) > 0 {
				t.Errorf("%d in doubt, although nobody died", len(v.doubts))
			}
		})
	}
}

// 50,000 messages over 20 streams from 4 processes, one of them killed: every
// stream is 1..N. What the clients were told is compared, not the ledger.
func TestNumbersHaveNoGaps(t *testing.T) {
	s := newStage(t)
	var apis [4]*slot
	for i := range apis {
		apis[i] = s.slot("api")
	}
	var turn atomic.Int64
	c := newClient(t, s.key, func() string { return apis[int(turn.Add(1))%4].current().api })
	total := teststack.Scaled(50_000)
	var mu sync.Mutex
	numbers := make(map[int]map[int64]string)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= total {
					return
				}
				name := fmt.Sprintf("number-%06d", i)
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				a, err := c.submit(ctx, order{Name: name, Stream: fmt.Sprint("s", i%20)})
				cancel()
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if numbers[i%20] == nil {
					numbers[i%20] = make(map[int64]string)
				}
				if was, ok := numbers[i%20][a.Messages[0].Sequence]; ok {
					t.Errorf("stream %d: number %d was given to %s and %s", i%20, a.Messages[0].Sequence, was, name)
				}
				numbers[i%20][a.Messages[0].Sequence] = name
				mu.Unlock()
				if i == total/2 {
					apis[2].replace(t)
				}
			}
		})
	}
	wg.Wait()
	for stream, given := range numbers {
		for n := int64(1); n <= int64(len(given)); n++ {
			if given[n] == "" {
				t.Errorf("stream %d: %d messages, and nobody has number %d", stream, len(given), n)
			}
		}
		var audit struct {
			First, Last int64
			Missing     []json.RawMessage
		}
		s.getAs(s.key, apis[0].current().api+"/v1/streams/"+fmt.Sprint("s", stream)+"/audit", &audit)
		if audit.First != 1 || audit.Last != int64(len(given)) || len(audit.Missing) != 0 {
			t.Errorf("stream %d: the audit says %+v of %d", stream, audit, len(given))
		}
	}
}

// Cancel racing claim: each is either canceled and not sent, or sent and the
// cancel refused.
func TestCancelOrSent(t *testing.T) {
	s := newStage(t)
	api := s.start("api").api
	s.start("worker")
	c := newClient(t, s.key, func() string { return api })
	submitAll(t, c, 20, mixed("warm")) // until the worker has its partitions
	if err := s.sims.Store.Wait(t.Context(), 20); err != nil {
		t.Fatal(err)
	}
	total := teststack.Scaled(2000)
	canceled := make([]atomic.Bool, total)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= total {
					return
				}
				o := order{Name: fmt.Sprintf("cancel-%05d", i), Push: i%2 == 1}
				a, err := c.submit(t.Context(), o)
				if err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Duration(i%8) * time.Millisecond) // to come before, amid and after the claim
				d, err := c.do(t.Context(), http.MethodDelete, api+"/v1/messages/"+a.Messages[0].ID, nil)
				switch {
				case err != nil:
					t.Error(err)
				case d.status == http.StatusOK:
					canceled[i].Store(true)
				case d.status != http.StatusConflict:
					t.Errorf("cancel: status %d", d.status)
				}
			}
		})
	}
	wg.Wait()
	for deadline := time.Now().Add(time.Minute); !s.quiet(api); {
		if time.Now().After(deadline) {
			t.Fatal("messages are still open")
		}
		time.Sleep(200 * time.Millisecond)
	}
	taken := s.taken()
	sent := 0
	for i := range canceled {
		n := taken[fmt.Sprintf("cancel-%05d", i)]
		if canceled[i].Load() != (n == 0) || n > 1 {
			t.Errorf("message %d: canceled %v, sent %d times", i, canceled[i].Load(), n)
		}
		sent += n
	}
	t.Logf("%d of %d sent, the others canceled", sent, total)
	if sent == 0 || sent == total {
		t.Errorf("nothing raced: %d of %d sent", sent, total)
	}
}
