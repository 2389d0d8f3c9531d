package message

import "time"

// DoubtFilter narrows doubts. Zero fields don't narrow.
type DoubtFilter struct {
	Lane     Lane
	Provider string // of those whose answer was lost; of a silent one nobody knows it
	Tenant   int32
	Since    time.Time // became a doubt then or later
	Until    time.Time // became a doubt before
}

// DoubtCount is how many doubts a filter finds.
type DoubtCount struct {
	Matched int64
	Lanes   map[Lane]int64
	Causes  map[string]int64
	Sample  []Doubt // the oldest
}
