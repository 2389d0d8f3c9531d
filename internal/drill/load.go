package drill

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
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
	insist        = 12              // tries of one message at the end, for a number
	stubborn      = 15              // tries of one message are worth a line
	tryLimit      = 12 * time.Second
	streams       = 8
	shortLife     = 5 * time.Minute // of every 50th message
	againWithin   = 5 * time.Second // a mixed load submits some again
)

// load is the client: an application that means it. Messages are due at a
// rate that is soon steady, whatever becomes of those before (an open loop); each is tried
// under its own key until it is answered, and what is answered 200 or 202 goes
// into the client's file, which is synced before it counts.
type load struct {
	stage     *Stage
	http      *http.Client
	file      *judge.File
	turn      atomic.Int64
	repeating atomic.Bool

	offered, accepted, unanswered atomic.Int64
	stuck                         atomic.Int64 // tried very often
	twice, late                   atomic.Int64 // submitted again at once; refused since their life had ended
	keyless, unsure               atomic.Int64 // submitted again without a key; of those, with no clear first answer
	refused, unreachable          secondsSeen

	mu        sync.Mutex
	known     []known           // the newest that were accepted, in a ring
	next      int               // of it
	orders    []order           // all that were offered
	kept      map[int]time.Time // since when orders are accepted
	refusals  map[int]bool      // orders that were refused since their life had ended
	queue     []*trying         // to be tried now
	wake      *sync.Cond
	inJournal map[int]known // by order: answered so, and not known to have left it
	over      bool
}

// order is one message to submit. Key is what the judge knows it by.
type order struct {
	i         int
	Key       string
	Push      bool
	Class     string
	Stream    string
	ExpiresAt time.Time
	Supersede string
	First     time.Time // when it was offered
	Again     bool      // it is submitted a second time, soon
	Keyless   bool      // it is submitted without an idempotency key
}

type trying struct {
	order
	pause time.Duration
	tries int
	done  func()
}

func newLoad(s *Stage, file *judge.File) *load {
	l := &load{stage: s, file: file, kept: make(map[int]time.Time), refusals: make(map[int]bool), inJournal: make(map[int]known)}
	l.wake = sync.NewCond(&l.mu)
	l.http = &http.Client{Timeout: tryLimit, Transport: &http.Transport{MaxIdleConnsPerHost: clientWorkers, MaxConnsPerHost: clientWorkers}}
	return l
}

// order i is the same for the same seed, but for its time.
func (l *load) order(i int, now time.Time) order {
	rng := rand.New(rand.NewPCG(l.stage.opt.Seed, uint64(i)))
	o := order{i: i, Key: fmt.Sprintf("drill-%08d", i), Push: rng.IntN(2) == 1, Stream: fmt.Sprint("stream-", rng.IntN(streams)), First: now}
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
	if l.stage.drill.Shape.Mixed {
		mix(&o, rng, now)
	}
	if l.stage.drill.Shape.Keyless && rng.IntN(5) == 0 {
		o.Keyless, o.ExpiresAt = true, time.Time{} // the same content, whenever it is submitted again
	}
	return o
}

// mix gives some orders a supersede key, which some near them share, and others
// a life of seconds.
func mix(o *order, rng *rand.Rand, now time.Time) {
	switch n := rng.IntN(100); {
	case n < 6:
		o.Supersede = fmt.Sprintf("code-%d-%d", o.i/60, rng.IntN(2))
	case n < 14:
		o.ExpiresAt = now.Add(time.Duration(3+rng.IntN(15)) * time.Second).Truncate(time.Second)
	}
	o.Again = rng.IntN(20) == 0
}

// first says whether order i was not accepted before.
func (l *load) first(i int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, was := l.kept[i]; was {
		return false
	}
	l.kept[i] = time.Now()
	return true
}

// gaveUp says whether order i is refused for the first time.
func (l *load) gaveUp(i int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.refusals[i]
	l.refusals[i] = true
	return !was
}

// tooLate says whether a try of an order, begun at a time, may be refused for
// good: its life has ended, and it had not been accepted by then. Of two tries at
// once either may be the first.
func (l *load) tooLate(o order, begun time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	kept, was := l.kept[o.i]
	return !o.ExpiresAt.IsZero() && time.Now().After(o.ExpiresAt) && !(was && kept.Before(begun))
}

func (o order) request() (path string, body map[string]any) {
	body = map[string]any{"class": o.Class, "stream": o.Stream}
	if !o.ExpiresAt.IsZero() {
		body["expires_at"] = o.ExpiresAt
	}
	if o.Supersede != "" {
		body["supersede_key"] = o.Supersede
	}
	if o.Push {
		body["platform"], body["to"] = "fcm", "device-token-"+o.Key
		body["notification"] = map[string]string{"title": o.Key, "body": "Hello"}
		return "/v1/pushes", body
	}
	body["from"], body["to"], body["subject"], body["text"] = "app@example.com", []string{o.Key + "@example.net"}, o.Key, "Hello"
	return "/v1/emails", body
}

// due is when message i of n is offered, since the load began. The rate is grown to
// within 20 s, or a tenth of the time: what has just started is cold.
func due(i, n, rate int) time.Duration {
	at, full := float64(i)/float64(rate), min(20, float64(n)/float64(rate)/10)
	if at < full/2 {
		at = math.Sqrt(2 * full * at)
	} else {
		at += full / 2
	}
	return time.Duration(at * float64(time.Second))
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
	for i := 0; (i < n || more()) && waitUntil(ctx, start.Add(due(i, n, rate))); i++ {
		o := l.order(i, time.Now())
		l.mu.Lock()
		l.orders = append(l.orders, o)
		l.mu.Unlock()
		l.offered.Add(1)
		open.Add(1)
		l.unanswered.Add(1)
		done := func() { l.unanswered.Add(-1); open.Done() }
		l.push(&trying{order: o, pause: firstPause, done: done})
		if o.Again {
			open.Add(1)
			l.unanswered.Add(1)
			l.twice.Add(1)
			again := &trying{order: o, pause: firstPause, done: done}
			time.AfterFunc(againWithin*time.Duration(i%10)/10, func() { l.push(again) })
		}
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

// again submits every message once more, under its key if it has one, as fast as a few
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
		if o.Keyless {
			l.keyless.Add(1)
		}
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
		through, said := l.try(ctx, t)
		if through {
			t.done()
			continue
		}
		if t.Keyless && !l.repeating.Load() {
			l.unsure.Add(1) // it may be in; so it is submitted again when others are
			t.done()
			continue
		}
		if t.tries++; t.tries == stubborn && l.stuck.Add(1) <= 3 {
			l.stage.Event("%s has been tried %d times; last: %s", t.Key, t.tries, said)
		}
		pause := t.pause
		t.pause = min(2*t.pause, maxPause)
		time.AfterFunc(pause, func() { l.push(t) })
	}
}

const journaledState = "journaled"

// answer is what the API says to a submission.
type answer struct {
	ID       string
	Detail   string // of a problem
	Messages []struct {
		ID       string
		State    string
		Sequence int64
	}
}

// try submits once, and says whether the message is through: accepted, or
// refused for good, which is a broken promise unless it came too late; and else
// what was said.
func (l *load) try(ctx context.Context, t *trying) (through bool, said string) {
	begin := time.Now()
	status, a, err := l.post(ctx, t.order)
	switch {
	case err != nil:
		if ctx.Err() == nil {
			l.unreachable.add(time.Now())
		}
		return false, err.Error()
	case status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests:
		l.refused.add(time.Now())
		return false, "503: " + a.Detail
	case status == http.StatusUnprocessableEntity && l.stage.drill.Shape.Mixed && l.tooLate(t.order, begin):
		if l.gaveUp(t.i) {
			l.late.Add(1)
		}
		return true, ""
	case status != http.StatusOK && status != http.StatusAccepted:
		l.stage.broke("answers", "%s was answered %d at %s: %s", t.Key, status, time.Now().Format(time.RFC3339Nano), a.Detail)
		return status/100 == 4, fmt.Sprint(status)
	case len(a.Messages) != 1:
		l.stage.broke("answers", "%s was answered %d with %d messages", t.Key, status, len(a.Messages))
		return true, ""
	}
	m := a.Messages[0]
	if l.repeating.Load() && m.Sequence == 0 && t.tries < insist {
		return false, "it has no number yet"
	}
	err = l.file.Append(judge.Accepted{
		Key: t.Key, ID: m.ID, Class: t.Class, Stream: t.Stream, Sequence: m.Sequence, Tried: begin, At: time.Now(), ExpiresAt: t.ExpiresAt,
		Supersede: t.Supersede, First: t.First, Keyless: t.Keyless, Last: l.repeating.Load(), Fresh: status == http.StatusAccepted && m.State != journaledState && !l.may(t.i),
	})
	if err != nil {
		l.stage.broke("client's file", "%v", err)
	}
	if l.first(t.i) && !l.repeating.Load() {
		l.accepted.Add(1)
		l.remember(known{t.i, m.ID, time.Now(), m.State == journaledState})
	}
	if m.State == journaledState && !l.repeating.Load() {
		l.mu.Lock()
		l.inJournal[t.i] = known{order: t.i, id: m.ID}
		l.mu.Unlock()
	}
	return true, ""
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
	if !o.Keyless {
		req.Header.Set("Idempotency-Key", o.Key)
	}
	resp, err := l.http.Do(req)
	if err != nil {
		return 0, a, err
	}
	defer resp.Body.Close()
	if b, err = io.ReadAll(resp.Body); err != nil {
		return 0, a, err
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusAccepted:
		err = json.Unmarshal(b, &a)
	case http.StatusServiceUnavailable: // it may have no detail
		_ = json.Unmarshal(b, &a)
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
