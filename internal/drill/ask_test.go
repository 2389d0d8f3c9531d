package drill

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/drill/judge"
)

// asking is a stage whose API answers so, and that has been at work for a minute.
func asking(t *testing.T, status int, body string) *Stage {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(api.Close)
	s := &Stage{
		asked: asked{states: map[string]int{}, told: map[judge.Told]bool{}}, brokenBy: map[string]int{}, result: &Result{},
		start: time.Now().Add(-time.Minute), apis: []*server{{p: &process{api: api.URL}}},
	}
	s.load = newLoad(s, nil)
	return s
}

// An API that answers 503 to everything is caught, while both stores are well.
func TestAskWhileTheStoresAreWell(t *testing.T) {
	k := known{id: "msg", at: time.Now().Add(-30 * time.Second)}
	for _, c := range []struct {
		name   string
		status int
		harm   func(*Stage)
		broken bool
	}{
		{"well", http.StatusServiceUnavailable, func(*Stage) {}, true},
		{"its own fault", http.StatusInternalServerError, func(*Stage) {}, true},
		{"an answer", http.StatusOK, func(*Stage) {}, false},
		{"just begun", http.StatusServiceUnavailable, func(s *Stage) { s.start = time.Now() }, false},
		{"not well until now", http.StatusServiceUnavailable, func(s *Stage) { s.unwell = time.Now().Add(-time.Second) }, false},
		{"well for long", http.StatusServiceUnavailable, func(s *Stage) { s.unwell = time.Now().Add(-wellFor - time.Second) }, true},
		{"a fault lasts", http.StatusServiceUnavailable, func(s *Stage) { s.silencing = 1 }, false},
		{"a store is harmed", http.StatusServiceUnavailable, func(s *Stage) { s.storeHarmed = true }, false},
		{"the timeline knows", http.StatusServiceUnavailable, func(s *Stage) { s.observe(Tick{}) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := asking(t, c.status, `{"state":"queued"}`)
			c.harm(s)
			s.askOne(t.Context(), k)
			if got := len(s.result.Broken) > 0; got != c.broken {
				t.Errorf("broken: %v", s.result.Broken)
			}
		})
	}
}

// Harm to a store excuses silence until it is healed, and a little longer; a loss of
// what numbers doesn't.
func TestHarmToAStore(t *testing.T) {
	s := asking(t, http.StatusOK, `{}`)
	for _, c := range []struct {
		tells string
		well  bool
	}{{numbering, true}, {fcmCredential, true}, {ledgerAway, false}, {kafkaAway, false}, {rolledBack, false}} {
		s.storeHarmed, s.unwell = false, time.Time{}
		s.noteHarm(&harm{stage: s, tells: []string{c.tells}, began: time.Now()})
		if got := s.wellSince(time.Now()); got != c.well {
			t.Errorf("%s: well %v", c.tells, got)
		}
		s.heal()
		if got := s.wellSince(time.Now().Add(-time.Second)); got != c.well {
			t.Errorf("%s, just healed: well %v", c.tells, got)
		}
	}
}

// What is journaled must be told of within 5 s and what the asking takes.
func TestAskAboutTheJournal(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name   string
		status int
		ago    time.Duration // when it was first asked for
		harm   func(*Stage)
		again  bool
		untrue string
	}{
		{"not yet", 503, 4 * time.Second, func(s *Stage) { s.storeHarmed = true }, true, ""},
		{"never", 503, 6100 * time.Millisecond, func(s *Stage) { s.storeHarmed = true }, false, "no process told"},
		{"too late", 200, 6100 * time.Millisecond, func(s *Stage) { s.storeHarmed = true }, false, "no process told"},
		{"in time", 200, 5 * time.Second, func(s *Stage) { s.storeHarmed = true }, false, ""},
		{"Kafka is away", 503, 9 * time.Second, func(s *Stage) { s.storeHarmed, s.kafkaLess = true, now }, false, ""},
		{"healed", 503, 9 * time.Second, func(s *Stage) { s.healed, s.unwell = now, now }, false, ""},
		{"both are well", 503, 9 * time.Second, func(s *Stage) { s.healed = now }, false, "no process told"},
		{"killed", 0, 9 * time.Second, func(s *Stage) { s.storeHarmed = true }, false, ""},
		{"unknown", 404, 4 * time.Second, func(s *Stage) { s.storeHarmed = true }, false, "404"},
	} {
		s := &Stage{start: now.Add(-time.Minute), lastHarm: now.Add(-40 * time.Second)}
		c.harm(s)
		got := s.judgeAnswer(known{at: now.Add(-30 * time.Second), journaled: true}, now.Add(-c.ago), now, c.status)
		if got.again != c.again || (got.untrue != "") != (c.untrue != "") || !strings.Contains(got.untrue, c.untrue) {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

// What can't change any more is kept for the judge.
func TestAskKeepsWhatIsFinal(t *testing.T) {
	for state, want := range map[string]bool{"queued": false, "sending": false, "in_doubt": false, "sent": true, "failed": true, "expired": true, "superseded": true, "canceled": true, "held": true} {
		s := asking(t, http.StatusOK, `{"state":"`+state+`"}`)
		s.askOne(t.Context(), known{id: "msg", at: time.Now()})
		if got := s.asked.told[judge.Told{ID: "msg", State: state}]; got != want || s.asked.states[state] != 1 {
			t.Errorf("%s: kept %v, states %v", state, got, s.asked.states)
		}
	}
}
