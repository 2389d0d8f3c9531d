package broker

import (
	"maps"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// put and drop have the caller hold mu.
func (t *Tail) put(key submissionKey, e tailed) {
	if was, ok := t.index[key]; ok {
		t.lanes[was.lane] -= int64(was.count)
	}
	t.index[key] = e
	t.lanes[e.lane] += int64(e.count)
}

func (t *Tail) drop(key submissionKey, e tailed) {
	delete(t.index, key)
	t.lanes[e.lane] -= int64(e.count)
}

// Lanes is how many messages of each lane are in the journals, and perhaps not in the
// ledger yet: at is when nothing of it was, which is seconds ago, or, with a large
// index, many.
func (t *Tail) Lanes() (messages map[message.Lane]int64, at time.Time, known bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	messages = make(map[message.Lane]int64)
	for code, n := range t.lanes {
		if n > 0 {
			messages[message.LaneOf(int64(code))] = n
		}
	}
	return messages, t.swept, !t.asOf.IsZero() && len(t.lost) == 0
}

// forget drops what is below the committed offsets, of a time: the ledger has it. Of
// what this process wrote the record comes by the reader, but for one that the workers
// had entered before a reader began; that is dropped when all is read.
func (t *Tail) forget(open map[place]*reading, committed map[place]int64, at time.Time, caught bool) {
	below := make(map[int16]int64, len(open))
	for p, r := range open {
		below[r.number] = committed[p]
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	moved := !maps.Equal(below, t.below)
	// What was read behind the commits is left when all is read.
	sweep := t.own > 0 || moved || caught && !t.caught
	if large := len(t.index) > 100_000; large { // as long as others wait
		t.rounds++
		sweep = sweep && t.rounds%10 == 0
	}
	if sweep {
		t.below = below
		t.sweep(below, caught)
	}
	if sweep || !caught {
		t.caught = caught
	}
	if sweep || !moved {
		t.swept = at
	}
	maps.DeleteFunc(t.lost, func(p place, offset int64) bool { return offset < committed[p] })
}

func (t *Tail) sweep(below map[int16]int64, caught bool) {
	for key, e := range t.index {
		switch {
		case e.place >= 0 && e.offset < below[e.place]:
			t.drop(key, e)
		case e.place < 0 && caught:
			if e.seen++; e.seen > 3 {
				t.drop(key, e)
				t.own--
			} else {
				t.index[key] = e
			}
		}
	}
}
