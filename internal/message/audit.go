package message

// Audit says whether the numbers From to To of a stream are complete.
type Audit struct {
	Stream  string
	First   int64 // 1, or the first number that retention has left; 0 when empty
	Last    int64
	From    int64
	To      int64
	Next    int64   // where to go on, 0 when all that was asked for was looked at
	Missing []Range // bounded to the first 1,000
	States  map[State]int64
}

// Range is From to To, both included.
type Range struct{ From, To int64 }

// LaneAudit is where every message is that a lane accepted and still knows.
type LaneAudit struct {
	Lane     Lane
	Accepted int64 // by the submissions' identities
	States   map[State]int64
	// Lost is messages that have not ended and that nothing will take up any
	// more. There should be none, ever.
	Lost int64
}

// Counted is how many messages are in a state that the promise allows.
func (a LaneAudit) Counted() (n int64) {
	for _, count := range a.States {
		n += count
	}
	return n
}

// AddsUp says whether every accepted message is accounted for.
func (a LaneAudit) AddsUp() bool { return a.Lost == 0 && a.Accepted == a.Counted() }
