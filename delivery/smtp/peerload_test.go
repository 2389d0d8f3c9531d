package smtp

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// restartUnderLoad: servers go at any step of a hand-over. What was Sent arrives
// once, what was not taken not at all before it is tried again, and what is
// Unknown once at most.
func (s *peers) restartUnderLoad(t *testing.T) {
	var loads []*peerLoad
	for name, addr := range s.to() {
		loads = append(loads, startPeerLoad(t, name, s.provider(t, addr, nil)))
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		for _, d := range []*daemon{s.postfix, s.dovecot} {
			for _, l := range loads {
				l.more(t, 6)
			}
			d.stop(t, sig)
			d.start(t)
		}
	}
	for _, l := range loads {
		l.more(t, 6)
		l.end()
	}
	all := s.arrived(t)
	for _, l := range loads {
		l.check(t, all)
	}
}

// peerLoad is workers that hand messages over until they are stopped.
type peerLoad struct {
	name string
	p    *Provider
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu    sync.Mutex
	ended map[string]message.Outcome // by Message-ID
	said  map[string][]string        // all that was not Sent
	sent  int
	tries int
}

func startPeerLoad(t *testing.T, name string, p *Provider) *peerLoad {
	l := &peerLoad{name: name, p: p, ended: make(map[string]message.Outcome), said: make(map[string][]string)}
	ctx, stop := context.WithCancel(t.Context())
	l.stop = stop
	for range 3 {
		l.wg.Go(func() {
			for ctx.Err() == nil {
				env := mailTo("ann@reader.example", nil)
				if err := l.insist(ctx, env); err != nil && ctx.Err() == nil {
					t.Errorf("%s: %v", name, err)
					return
				}
			}
		})
	}
	t.Cleanup(l.end)
	return l
}

func (l *peerLoad) end() { l.stop(); l.wg.Wait() }

// insist hands env over until it is taken, or may have been.
func (l *peerLoad) insist(ctx context.Context, env *message.Envelope) error {
	for {
		slot, err := l.p.Reserve(ctx)
		var down *DownError
		if errors.As(err, &down) {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Until(down.Until)):
			}
			continue
		}
		if err != nil {
			return err
		}
		r := slot.Send(context.WithoutCancel(ctx), env, yes)
		slot.Release()
		l.mu.Lock()
		l.tries++
		id := env.ID.String() + "@sender.example"
		if l.ended[id] = r.Outcome; r.Outcome == message.Sent {
			l.sent++
		} else {
			l.said[id] = append(l.said[id], fmt.Sprint(r.Outcome, " ", r.Reply))
		}
		l.mu.Unlock()
		switch r.Outcome {
		case message.Sent, message.Unknown:
			return nil
		case message.Rejected:
			return fmt.Errorf("%+v", r)
		}
	}
}

// more waits until n more were sent.
func (l *peerLoad) more(t *testing.T, n int) {
	t.Helper()
	sent := func() int { l.mu.Lock(); defer l.mu.Unlock(); return l.sent }
	want := sent() + n
	await(t, fmt.Sprintf("%d more by %s", n, l.name), func() bool { return sent() >= want })
}

func (l *peerLoad) check(t *testing.T, all map[string][]letter) {
	t.Helper()
	for id, outcome := range l.ended {
		n := handOvers(all[id])
		if outcome == message.Sent && n != 1 || outcome == message.Unknown && n > 1 || outcome == message.Deferred && n > 0 {
			t.Errorf("%s: %v, and Postfix took it %d times: %v, after %q", l.name, outcome, n, all[id], l.said[id])
		}
	}
	t.Logf("%s: %d messages, %d of them sent, in %d attempts", l.name, len(l.ended), l.sent, l.tries)
}

// handOvers is how often Postfix took one message. A copy with the same id in its
// queue is one that it delivered twice by itself, when it was killed between the
// delivery and its note of it.
func handOvers(copies []letter) int {
	seen := make(map[string]bool)
	for _, c := range copies {
		seen[c.queue] = true
	}
	return len(seen)
}
