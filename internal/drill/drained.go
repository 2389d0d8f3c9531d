package drill

import (
	"context"
	"net/http"
	"sync"
	"time"
)

// drained waits until the API tells of no accepted message any more that it is in
// a journal alone, or cannot tell: from then on the ledger has to know it. What is
// there still after a long wait may be taken for new when it is submitted again.
func (s *Stage) drained(ctx context.Context) {
	end := time.Now().Add(4 * s.idle())
	for {
		left := s.load.journaledOnes()
		if len(left) == 0 || time.Now().After(end) {
			if len(left) > 0 {
				s.Event("%d messages are in a journal still", len(left))
			}
			return
		}
		queue := make(chan known)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for k := range queue {
					var m struct{ State string }
					status, _ := s.getAs(ctx, s.key, i, "/v1/messages/"+k.id, &m)
					if status == http.StatusNotFound || status == http.StatusOK && m.State != journaledState {
						s.load.left(k.order)
					}
				}
			})
		}
		for _, k := range left {
			if time.Now().After(end) || ctx.Err() != nil {
				break
			}
			queue <- k
		}
		close(queue)
		wg.Wait()
		if !waitUntil(ctx, time.Now().Add(time.Second)) {
			return
		}
	}
}

// journaledOnes are the messages that were journaled, and have not been told of
// as anything else yet.
func (l *load) journaledOnes() (all []known) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.inJournal {
		all = append(all, k)
	}
	return all
}

// left notes that order i has left its journal.
func (l *load) left(i int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.inJournal, i)
}

// may says whether order i may be in a journal still.
func (l *load) may(i int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, yes := l.inJournal[i]
	return yes
}
