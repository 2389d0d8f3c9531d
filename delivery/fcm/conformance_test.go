package fcm

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/delivery/providertest"
	"github.com/stormpost/stormpost/internal/message"
)

func TestConformance(t *testing.T) {
	protocols(t, func(t *testing.T, secure bool) {
		providertest.Run(t, providertest.Subject{
			Start: func(t *testing.T, concurrency int) (delivery.Provider, providertest.Server) {
				s := &subject{hanging: make(chan struct{}), release: make(chan struct{})}
				s.reply = s.misbehave
				s.token = s.misbehaveToken
				s.start(t, secure)
				return alone{s.provider(t, func(c *Config) { c.Concurrency = concurrency })}, s
			},
			Envelope: func(n int) *message.Envelope {
				env := envelope()
				env.Content.Push.To.Token = fmt.Sprintf("device-%d", n)
				return env
			},
			// Nothing is answered between the connection and the request.
			Lacks: []providertest.Fault{providertest.EarlyDefer, providertest.EarlyCut, providertest.EarlyHang},
		})
	})
}

// subject is the server as the conformance suite drives it.
type subject struct {
	server
	hanging chan struct{}
	release chan struct{}
	once    sync.Once

	mine  sync.Mutex // guards the rest
	fault providertest.Fault
	got   []int
}

func (s *subject) Misbehave(f providertest.Fault) {
	s.mine.Lock()
	defer s.mine.Unlock()
	s.fault = f
}

func (s *subject) current() providertest.Fault {
	s.mine.Lock()
	defer s.mine.Unlock()
	return s.fault
}

func (s *subject) Hanging() <-chan struct{} { return s.hanging }

func (s *subject) Got() []int {
	s.mine.Lock()
	defer s.mine.Unlock()
	return slices.Clone(s.got)
}

func (s *subject) Close() {
	s.once.Do(func() { close(s.release) })
	s.server.Close()
}

func (s *subject) misbehaveToken(w http.ResponseWriter, n int) {
	if s.current() == providertest.Down {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintf(w, `{"access_token":"CANARY-%d","token_type":"Bearer","expires_in":3600}`, n)
}

func (s *subject) misbehave(w http.ResponseWriter, n int, h hit) {
	var r sendRequest
	var number int
	if err := json.Unmarshal([]byte(h.body), &r); err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	if _, err := fmt.Sscanf(r.Message.Token, "device-%d", &number); err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	s.mine.Lock()
	s.got = append(s.got, number)
	s.mine.Unlock()
	switch s.current() {
	case providertest.Defer:
		fail(w, http.StatusTooManyRequests, "RESOURCE_EXHAUSTED")
	case providertest.Reject:
		fail(w, http.StatusBadRequest, "INVALID_ARGUMENT")
	case providertest.Cut:
		panic(http.ErrAbortHandler)
	case providertest.Garbage:
		_, _ = io.WriteString(w, "220 smtp.example ESMTP")
	case providertest.Hang:
		select {
		case s.hanging <- struct{}{}:
		case <-s.release:
		}
		<-s.release
	default:
		taken(w, n)
	}
}
