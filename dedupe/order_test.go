package dedupe

import (
	"slices"
	"testing"
	"time"
)

// What is in the journals twice goes in with its first time; what comes by the door
// keeps its order.
func TestEarliestFirst(t *testing.T) {
	at := time.Now()
	call := func(after time.Duration) *acceptCall { return &acceptCall{entry: &entry{acceptedAt: at.Add(after)}} }
	a, b, c := call(2), call(1), call(1)
	if got := earliestFirst([]*acceptCall{a, b, c}); !slices.Equal(got, []*acceptCall{b, c, a}) {
		t.Error("not by their times")
	}
	door := []*acceptCall{{came: at.Add(2)}, {came: at}}
	if got := earliestFirst(slices.Clone(door)); !slices.Equal(got, door) {
		t.Error("the door's were sorted")
	}
}
