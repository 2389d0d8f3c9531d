package drill

import (
	"strings"
	"time"

	"github.com/stormpost/stormpost/internal/drill/judge"
)

const (
	// inHand is how many hand-overs a worker may have begun at a time: by default 64
	// in a transactional lane and 32 in each other, of two channels.
	inHand = 2 * (64 + 32 + 32)
	// hold is how long a worker may have a message in hand that no provider takes: then
	// it has given it back (CLAIM_VALID), or had its answer (REPLY_LIMIT), as
	// processSettings have them.
	hold = 30 * time.Second
)

func (s *server) worker() bool { return strings.Contains(s.roles, "worker") }

// died notes that a worker was killed, or forgotten, from a time until now.
func (s *Stage) died(from time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.harms.Deaths = append(s.harms.Deaths, judge.Death{From: from, Until: time.Now()})
}

// troubled notes that something was harmed, from a time until now.
func (s *Stage) troubled(of string, from time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.harms.Troubles = append(s.harms.Troubles, judge.Trouble{Of: of, From: from, Until: time.Now()})
}

// victim is what a fault harms, for the judge; empty if that leaves no doubt.
func (s *Stage) victim(f fault) string {
	p := s.server(strings.TrimPrefix(f.Target, clockOf))
	switch {
	case p != nil && p.worker():
		return judge.Worker
	case p != nil:
		return ""
	case f.Target == "smtp" || f.Target == "fcm":
		return f.Target
	}
	return judge.Store
}
