package app

import (
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// leftFresh is how old a count of what the journals still have may be: it is
// asked for every two seconds.
const leftFresh = 10 * time.Second

// journalLeft is how many submissions a cluster's journals still had.
type journalLeft struct {
	classes map[message.Class]int64
	at      time.Time // before that was asked
}

// journaled is how many messages the journals alone have of each lane of which that is
// known, and when that was so. It asks no store. The API's index of the journals knows
// all. Without it that is known of a class whose journals are empty: what others have,
// and of which channel, only who reads them can tell. Nor is known when that comes
// which a cluster has that is away.
func (cs *clusters) journaled() (messages map[message.Lane]int64, at time.Time) {
	messages, at = make(map[message.Lane]int64), time.Now()
	for _, l := range message.Lanes() {
		messages[l] = 0
	}
	for _, c := range cs.all {
		if c.bare.Load() {
			continue
		}
		var some map[message.Lane]int64
		var swept time.Time
		known := false
		if c.tail != nil {
			some, swept, known = c.tail.Lanes()
		}
		left := c.left.Load()
		for lane := range messages {
			switch {
			case known && some[lane] == 0:
			case known && !c.isAway():
				messages[lane] += some[lane]
				if swept.Before(at) {
					at = swept
				}
			case !known && left != nil && left.classes[lane.Class] == 0 && time.Since(left.at) < leftFresh:
			default:
				delete(messages, lane)
			}
		}
	}
	return messages, at
}
