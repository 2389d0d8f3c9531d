package message

import (
	"errors"
	"time"
)

// ReplayFilter narrows what a replay looks at. Zero fields don't narrow.
type ReplayFilter struct {
	Lane     Lane
	State    State  // StateFailed or StateHeld; none means both
	Provider string // that answered last
	Tenant   int32
	Stream   string
	Since    time.Time // accepted then or later
	Until    time.Time // accepted before
	Tag      string
}

// ReplayStatus is how far a replay is.
type ReplayStatus string

// The statuses. Done and canceled replays stay so.
const (
	ReplayCounting ReplayStatus = "counting" // its first pass; nothing is given yet
	ReplayRunning  ReplayStatus = "running"
	ReplayPaused   ReplayStatus = "paused"
	ReplayCanceled ReplayStatus = "canceled" // what got leave before keeps it
	ReplayDone     ReplayStatus = "done"     // everything got leave, or was left out
)

// Replay is leave for another attempt to messages that ended as failed or are
// held: a plan, and how far it is.
type Replay struct {
	ID     int64
	Named  ID // the one message that was named; a zero ID stands for none
	Filter ReplayFilter
	Rate   int // messages a second, at most
	Reason string
	By     string
	At     time.Time

	Status    ReplayStatus
	StoppedBy string // who paused or canceled it last
	EndedAt   time.Time
	MovedAt   time.Time        // when it last came on
	Total     int64            // messages to be sent, as counted by the first pass
	Given     int64            // those that got leave
	LeftOut   map[string]int64 // others that fit the filter, by ReplayCauses
	ETA       time.Duration    // until Given is Total; negative when nobody can tell

	Counted bool     // the first pass is through
	Pos     Position // the checkpoint: of its lane everything up to it was looked at
	Top     int64    // the last submission that it looks at
}

// ReplayCauses says why a message that fits a filter is not sent.
var ReplayCauses = map[string]string{
	"queued":       "nobody has tried yet: it goes by itself",
	"waiting":      "it waits for its next attempt: it goes by itself",
	"sending":      "an attempt is open",
	"in_doubt":     "nobody knows whether it was taken: decide the doubt",
	"sent":         "it was sent",
	"maybe_sent":   "an attempt that was decided to be dropped or repeated may have been taken",
	"failed":       "it is failed, and only held ones were asked for",
	"held":         "it is held, and only failed ones were asked for",
	"key_conflict": "another request came first under its idempotency key",
	"expired":      "its life is over",
	"superseded":   "a newer one stands in for it",
	"canceled":     "it was canceled",
	"erased":       "its content was erased by age",
	"suppressed":   "its recipient is suppressed: a provider said that it is gone, or its reader complained",
	"later":        "it ended after the replay was asked for",
	"changed":      "it was attempted again since you looked",
	"gone":         "retention has dropped it",
}

// ReplayLook is what a replay would do. Counts and Samples are by cause, with
// "" for the messages that would be sent. Next goes on where this look ended;
// it is empty when all was looked at.
type ReplayLook struct {
	Counts  map[string]int64
	Samples map[string][]View // a few of each
	Next    string
}

// ReplayStep is what one step of a replay did.
type ReplayStep struct {
	Gave   int64
	Filled bool // it gave as many as it was allowed to: the window has more
	Full   bool // nothing was given: the lane has as much due as is good for it
	Ended  bool // that was the last one, or it is not ours, or not active, any more
}

// NotReplayable is why a message that was named is not sent again: one of
// ReplayCauses.
type NotReplayable struct{ Cause string }

func (e *NotReplayable) Error() string { return "not replayable: " + ReplayCauses[e.Cause] }

// ReplayOverlap names a replay that is not through, and whose filter may find
// some of the same messages; 0 when there are too many of them.
type ReplayOverlap struct{ ID int64 }

func (e *ReplayOverlap) Error() string { return "another replay is not through" }

// ErrReplayEnded means that the replay is done or canceled.
var ErrReplayEnded = errors.New("replay has ended")
