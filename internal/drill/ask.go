package drill

import (
	"context"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"
)

const (
	askers   = 2
	askEvery = 200 * time.Millisecond
	askAbout = 5000 // of the newest accepted messages
	// tellWithin is how soon any API process must tell of what is in a journal,
	// while Kafka answers.
	tellWithin = 5 * time.Second
	askSlack   = 2 * time.Second // for the asking itself
)

// known is a message that the client has a 202 for.
type known struct {
	id        string
	at        time.Time
	journaled bool // as the answer said
}

func (l *load) remember(k known) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.known) < askAbout {
		l.known = append(l.known, k)
		return
	}
	l.known[l.next] = k
	l.next = (l.next + 1) % askAbout
}

func (l *load) anyKnown() (known, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.known) == 0 {
		return known{}, false
	}
	return l.known[rand.IntN(len(l.known))], true
}

// asked is what the API said when it was asked what became of a message.
type asked struct {
	mu     sync.Mutex
	states map[string]int
	sent   map[string]bool // ids
}

// ask asks, until ctx ends, what became of messages that were accepted: queued,
// sent or dropped. A 404 is never true; what is told as sent is for the judge; and
// what a journal has must be told of while Kafka is there.
func (s *Stage) ask(ctx context.Context) {
	for waitUntil(ctx, time.Now().Add(askEvery)) {
		if k, ok := s.load.anyKnown(); ok {
			s.askOne(ctx, k)
		}
	}
}

func (s *Stage) askOne(ctx context.Context, k known) {
	begin := time.Now()
	for {
		var m struct{ State string }
		status, err := s.getAs(ctx, s.key, rand.IntN(len(s.apis)), "/v1/messages/"+k.id, &m)
		switch {
		case ctx.Err() != nil:
			return
		case status == http.StatusNotFound && time.Since(k.at) > tellWithin:
			s.broke("what became of it", "%s, accepted at %s, is answered 404", k.id, k.at.Format(time.RFC3339))
			return
		case status == http.StatusOK:
			s.asked.mu.Lock()
			s.asked.states[m.State]++
			if m.State == "sent" {
				s.asked.sent[k.id] = true
			}
			s.asked.mu.Unlock()
			return
		}
		unknown := "503"
		if status == 0 {
			unknown = "unreachable"
		}
		s.asked.mu.Lock()
		s.asked.states[unknown]++
		s.asked.mu.Unlock()
		if !k.journaled || status != http.StatusServiceUnavailable {
			return // the ledger alone knows of it
		}
		if !s.onlyJournal(k.at, begin) {
			return
		}
		if time.Since(begin) > tellWithin+askSlack {
			s.broke("what became of it", "%s was journaled, Kafka is there, and no process tells: %v", k.id, err)
			return
		}
		if !waitUntil(ctx, time.Now().Add(askEvery)) {
			return
		}
	}
}

// onlyJournal says whether what was accepted at a time can be in a journal only:
// the harm was done before and isn't healed yet, and whether all of Kafka has
// been there since begin.
func (s *Stage) onlyJournal(at, begin time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return at.After(s.lastHarm) && s.healed.IsZero() && !s.kafkaLess.After(begin)
}
