package delivery

import (
	"sync"

	"github.com/stormpost/stormpost/internal/message"
)

// hand is what a lane has in hand: the attempts that it was offered and has
// not asked for, and those that it may have open. The same attempt can be there
// more than once, from Kafka and from the feed; the ledger lets one of them
// through. It grows no larger than the lane's queues and senders together.
type hand struct {
	mu    sync.Mutex
	grips map[message.AttemptKey]grip
	ready int // not asked for yet
	open  int // asked for, and not known to have ended
}

type grip struct{ ready, open int32 }

func newHand() *hand { return &hand{grips: make(map[message.AttemptKey]grip)} }

// take notes that k was offered. With alone it refuses what is in hand already.
func (h *hand) take(k message.AttemptKey, alone bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	g, ok := h.grips[k]
	if ok && alone {
		return false
	}
	g.ready++
	h.ready++
	h.grips[k] = g
	return true
}

// drop notes that k goes away without having been asked for.
func (h *hand) drop(k message.AttemptKey) { h.move(k, -1, 0) }

// ask notes that k is going to be claimed: from now on it may be open.
func (h *hand) ask(k message.AttemptKey) { h.move(k, -1, +1) }

// unask notes that k was not claimed after all, and is kept to be.
func (h *hand) unask(k message.AttemptKey) { h.move(k, +1, -1) }

// end notes that k is certainly not open, or no longer.
func (h *hand) end(k message.AttemptKey) { h.move(k, 0, -1) }

func (h *hand) move(k message.AttemptKey, ready, open int32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.grips[k]
	g.ready += ready
	g.open += open
	h.ready += int(ready)
	h.open += int(open)
	if g == (grip{}) {
		delete(h.grips, k)
		return
	}
	h.grips[k] = g
}

// counts says how many attempts wait to be asked for, and how many may be open.
func (h *hand) counts() (ready, open int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ready, h.open
}

// appendOpen adds the attempts that may be open to keys.
func (h *hand) appendOpen(keys []message.AttemptKey) []message.AttemptKey {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k, g := range h.grips {
		if g.open > 0 {
			keys = append(keys, k)
		}
	}
	return keys
}
