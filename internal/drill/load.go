package drill

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stormpost/stormpost/internal/drill/judge"
)

const (
	clientWorkers = 256 // requests under way at once
	firstPause    = 100 * time.Millisecond
	maxPause      = 2 * time.Second // between the tries of one message
	tryLimit      = 12 * time.Second
	streams       = 8
	shortLife     = 5 * time.Minute // of every 50th message
)

// load is the client: an application that means it. Messages are due at a
// steady rate, whatever becomes of those before (an open loop); each is tried
// under its own key until it is answered, and what is answered 200 or 202 goes
// into the client's file, which is synced before it counts.
type load struct {
	stage     *Stage
	http      *http.Client
	file      *judge.File
	turn      atomic.Int64
	repeating atomic.Bool

	offered, accepted, unanswered atomic.Int64
	refused, unreachable          secondsSeen

	mu     sync.Mutex
	known  []known   // the newest that were accepted, in a ring
	next   int       // of it
	orders []order   // all that were offered
	queue  []*trying // to be tried now
	wake   *sync.Cond
	over   bool
}

// order is one message to submit. Key is what the judge knows it by.
type order struct {
	i         int
	Key       string
	Push      bool
	Class     string
	Stream    string
	ExpiresAt time.Time
}

type trying struct {
	order
	pause time.Duration
	done  func()
}

func newLoad(s *Stage, file *judge.File) *load {
	l := &load{stage: s, file: file}
	l.wake = sync.NewCond(&l.mu)
	l.http = &http.Client{Timeout: tryLimit, Transport: &http.Transport{MaxIdleConnsPerHost: clientWorkers, MaxConnsPerHost: clientWorkers}}
	return l
}

// order i is the same for the same seed, but for its time.
func (l *load) order(i int, now time.Time) order {
	rng := rand.New(rand.NewPCG(l.stage.opt.Seed, uint64(i)))
	o := order{i: i, Key: fmt.Sprintf("drill-%08d", i), Push: rng.IntN(2) == 1, Stream: fmt.Sprint("stream-", rng.IntN(streams))}
	switch n := rng.IntN(10); {
	case n < 4:
		o.Class = "transactional"
	case n < 7:
		o.Class = "trigger"
	default:
		o.Class = "campaign"
	}
	if rng.IntN(50) == 0 {
		o.ExpiresAt = now.Add(shortLife).Truncate(time.Second)
	}
	return o
}

func (o order) request() (path string, body map[string]any) {
	body = map[string]any{"class": o.Class, "stream": o.Stream}
	if !o.ExpiresAt.IsZero() {
		body["expires_at"] = o.ExpiresAt
	}
	if o.Push {
		body["platform"], body["to"] = "fcm", "device-token-"+o.Key
		body["notification"] = map[string]string{"title": o.Key, "body": "Hello"}
		return "/v1/pushes", body
	}
	body["from"], body["to"], body["subject"], body["text"] = "app@example.com", []string{o.Key + "@example.net"}, o.Key, "Hello"
	return "/v1/emails", body
}

// run offers at least n messages at the rate, and further ones until more says
// that it is enough. It returns when all are answered, or ctx has ended.
func (l *load) run(ctx context.Context, n, rate int, more func() bool) {
	var workers, open sync.WaitGroup
	for range clientWorkers {
		workers.Go(func() { l.work(ctx) })
	}
	stop := context.AfterFunc(ctx, l.end)
	defer stop()
	start := time.Now()
	for i := 0; (i < n || more()) && waitUntil(ctx, start.Add(time.Duration(i)*time.Second/time.Duration(rate))); i++ {
		o := l.order(i, time.Now())
		l.mu.Lock()
		l.orders = append(l.orders, o)
		l.mu.Unlock()
		l.offered.Add(1)
		open.Add(1)
		l.unanswered.Add(1)
		l.push(&trying{order: o, pause: firstPause, done: func() { l.unanswered.Add(-1); open.Done() }})
	}
	answered := make(chan struct{})
	go func() { open.Wait(); close(answered) }()
	select {
	case <-answered:
	case <-ctx.Done():
	}
	l.end()
	workers.Wait()
}

// again submits every message once more, under its key, as fast as a few
// connections go, until each is answered.
func (l *load) again(ctx context.Context) {
	l.mu.Lock()
	orders := l.orders
	l.repeating.Store(true)
	l.over = false
	l.mu.Unlock()
	var workers, open sync.WaitGroup
	stop := context.AfterFunc(ctx, l.end)
	defer stop()
	for range 32 {
		workers.Go(func() { l.work(ctx) })
	}
	for _, o := range orders {
		open.Add(1)
		l.unanswered.Add(1)
		l.push(&trying{order: o, pause: firstPause, done: func() { l.unanswered.Add(-1); open.Done() }})
	}
	answered := make(chan struct{})
	go func() { open.Wait(); close(answered) }()
	select {
	case <-answered:
	case <-ctx.Done():
	}
	l.end()
	workers.Wait()
}

func (l *load) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over, l.queue = true, nil
	l.wake.Broadcast()
}

func (l *load) push(t *trying) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over {
		l.queue = append(l.queue, t)
		l.wake.Signal()
	}
}

func (l *load) work(ctx context.Context) {
	for {
		l.mu.Lock()
		for len(l.queue) == 0 && !l.over {
			l.wake.Wait()
		}
		if l.over {
			l.mu.Unlock()
			return
		}
		t := l.queue[0]
		l.queue = l.queue[1:]
		l.mu.Unlock()
		if l.try(ctx, t) {
			t.done()
			continue
		}
		pause := t.pause
		t.pause = min(2*t.pause, maxPause)
		time.AfterFunc(pause, func() { l.push(t) })
	}
}

// answer is what the API says to a submission.
type answer struct {
	ID       string
	Messages []struct {
		ID       string
		State    string
		Sequence int64
	}
}

// try submits once, and says whether the message is through: accepted, or
// refused for good, which is a broken promise.
func (l *load) try(ctx context.Context, t *trying) bool {
	begin := time.Now()
	status, a, err := l.post(ctx, t.order)
	switch {
	case err != nil:
		if ctx.Err() == nil {
			l.unreachable.add(time.Now())
		}
		return false
	case status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests:
		l.refused.add(time.Now())
		return false
	case status != http.StatusOK && status != http.StatusAccepted:
		l.stage.broke("answers", "%s was answered %d", t.Key, status)
		return status/100 == 4
	case len(a.Messages) != 1:
		l.stage.broke("answers", "%s was answered %d with %d messages", t.Key, status, len(a.Messages))
		return true
	}
	m := a.Messages[0]
	err = l.file.Append(judge.Accepted{
		Key: t.Key, ID: m.ID, Class: t.Class, Stream: t.Stream, Sequence: m.Sequence, Tried: begin, At: time.Now(), ExpiresAt: t.ExpiresAt,
	})
	if err != nil {
		l.stage.broke("client's file", "%v", err)
	}
	if !l.repeating.Load() {
		l.accepted.Add(1)
		l.remember(known{m.ID, time.Now(), m.State == "journaled"})
	}
	return true
}

func (l *load) post(ctx context.Context, o order) (status int, a answer, err error) {
	base := l.stage.API(int(l.turn.Add(1)))
	if base == "" {
		return 0, a, errors.New("no API process is up")
	}
	path, body := o.request()
	b, err := json.Marshal(body)
	if err != nil {
		return 0, a, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+path, bytes.NewReader(b))
	if err != nil {
		return 0, a, err
	}
	req.Header.Set("Authorization", "Bearer "+l.stage.key)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", o.Key)
	resp, err := l.http.Do(req)
	if err != nil {
		return 0, a, err
	}
	defer resp.Body.Close()
	if b, err = io.ReadAll(resp.Body); err != nil {
		return 0, a, err
	}
	if resp.StatusCode/100 == 2 {
		err = json.Unmarshal(b, &a)
	}
	return resp.StatusCode, a, err
}

// secondsSeen counts distinct seconds in which something happened.
type secondsSeen struct {
	mu   sync.Mutex
	seen map[int64]bool
}

func (s *secondsSeen) add(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil {
		s.seen = make(map[int64]bool)
	}
	s.seen[at.Unix()] = true
}

// between counts those from a on and before b.
func (s *secondsSeen) between(a, b time.Time) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for t := range s.seen {
		if t >= a.Unix() && t < b.Unix() {
			n++
		}
	}
	return n
}

func (s *secondsSeen) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.seen)
}

// waitUntil waits, and says whether ctx still lives.
func waitUntil(ctx context.Context, at time.Time) bool {
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
