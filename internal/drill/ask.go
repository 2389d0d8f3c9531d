package drill

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/stormpost/stormpost/internal/drill/judge"
)

const (
	askers   = 2
	askEvery = 200 * time.Millisecond
	askAbout = 5000 // of the newest accepted messages
	// tellWithin is how soon any API process must tell of what is in a journal,
	// while Kafka answers, and askSlack what the asking itself may add: askEvery, and
	// the way of an answer on a busy machine.
	tellWithin = 5 * time.Second
	askSlack   = time.Second
	// wellFor is how long both stores must have been well before a request in which
	// nothing but an answer is right.
	wellFor = 5 * time.Second
)

// known is a message that the client has a 202 for.
type known struct {
	order     int
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
	told   map[judge.Told]bool // what may not change any more
}

// final are the states that a message has for good, while nobody decides otherwise.
var final = []string{"sent", "failed", "expired", "superseded", "canceled", "held"}

// ask asks, until ctx ends, what became of messages that were accepted: queued,
// sent or dropped. A 404 is never true; what is told as final is for the judge; what
// a journal has must be told of while Kafka is there, and all while both stores are.
func (s *Stage) ask(ctx context.Context) {
	for waitUntil(ctx, time.Now().Add(askEvery)) {
		if k, ok := s.load.anyKnown(); ok {
			s.askOne(ctx, k)
		}
	}
}

func (s *Stage) askOne(ctx context.Context, k known) {
	for begin := time.Now(); ; {
		began := time.Now()
		var m struct{ State string }
		status, err := s.getAs(ctx, s.key, rand.IntN(len(s.apis)), "/v1/messages/"+k.id, &m)
		if ctx.Err() != nil {
			return
		}
		if err != nil && status == http.StatusOK {
			status = 0 // it was cut off
		}
		s.count(k.id, status, m.State)
		a := s.judgeAnswer(k, begin, began, status)
		if a.untrue != "" {
			said := m.State
			if err != nil {
				said = err.Error()
			}
			s.broke("what became of it", "%s, accepted at %s, %s: %s", k.id, k.at.Format(time.RFC3339), a.untrue, said)
		}
		if !a.again || !waitUntil(ctx, time.Now().Add(askEvery)) {
			return
		}
	}
}

// count notes an answer.
func (s *Stage) count(id string, status int, state string) {
	s.asked.mu.Lock()
	defer s.asked.mu.Unlock()
	switch status {
	case http.StatusOK:
		if slices.Contains(final, state) {
			s.asked.told[judge.Told{ID: id, State: state}] = true
		}
	case 0:
		state = "unreachable"
	default:
		state = strconv.Itoa(status)
	}
	s.asked.states[state]++
}

// judged is what an answer is worth: what is untrue of it, and whether to ask again.
type judged struct {
	untrue string
	again  bool
}

// judgeAnswer judges an answer about k that was asked for at began, and first at begin.
func (s *Stage) judgeAnswer(k known, begin, began time.Time, status int) judged {
	now := time.Now()
	well := s.wellSince(began.Add(-wellFor))
	due := k.journaled && (well || s.onlyJournal(k.at, begin))
	late := due && now.Sub(begin) > tellWithin+askSlack
	switch {
	case status == 0: // a process that is killed or stands still
		return judged{}
	case status == http.StatusNotFound && now.Sub(k.at) > tellWithin:
		return judged{untrue: "is answered 404"}
	case late: // an answer that comes so late was none for as long
		return judged{untrue: fmt.Sprintf("was journaled, Kafka is there, and for %.1f s no process told", now.Sub(begin).Seconds())}
	case status == http.StatusOK || status == http.StatusNotFound:
		return judged{}
	case due:
		return judged{again: true}
	case well && !k.journaled: // the ledger has had it since it was answered
		return judged{untrue: fmt.Sprintf("is answered %d, although both stores have been well for %s", status, wellFor)}
	}
	return judged{}
}

// wellSince says whether both stores have been well since a time, as far as the
// timeline and whoever harms them know. Where numbers or credentials are harmed they are.
func (s *Stage) wellSince(at time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.storeHarmed && s.silencing == 0 && s.unwell.Before(at) && s.start.Before(at) && s.kafkaLess.Add(kafkaGrace).Before(at.Add(wellFor))
}

// onlyJournal says whether what was accepted at a time can be in a journal only:
// the harm was done before and isn't healed yet, and whether all of Kafka has
// been there since begin.
func (s *Stage) onlyJournal(at, begin time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return at.After(s.lastHarm) && s.healed.IsZero() && !s.kafkaLess.After(begin)
}

// get reads the API as an operator.
func (s *Stage) get(ctx context.Context, n int, path string, out any) error {
	_, err := s.getAs(ctx, s.oper, n, path, out)
	return err
}

// getAs reads the API with a key. The status is 0 when there was no answer.
func (s *Stage) getAs(ctx context.Context, key string, n int, path string, out any) (status int, err error) {
	return s.getFrom(ctx, s.API(n), key, path, out)
}

// getFrom is getAs with the API's base URL. The error has what a refusal says.
func (s *Stage) getFrom(ctx context.Context, base, key, path string, out any) (status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := s.load.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		return resp.StatusCode, fmt.Errorf("GET %s: %s: %s", cmp.Or(path, "/"), resp.Status, said)
	}
	return resp.StatusCode, json.NewDecoder(resp.Body).Decode(out)
}
