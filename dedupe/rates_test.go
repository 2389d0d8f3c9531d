package dedupe

import (
	"testing"
	"time"
)

// A process that began to look just before a drain did, while the backlog still
// came: how fast that came is no part of the rates.
func TestRatesFromTheDrainOn(t *testing.T) {
	t.Parallel()
	b := &beats{}
	for i, counts := range [][2]int64{{3800, 0}, {6000, 100}, {6000, 300}, {6000, 500}} {
		s := laneSample{at: time.Unix(int64(i), 0)}
		s.in[1], s.out[1] = counts[0], counts[1]
		b.add(s)
	}
	r := laneReader{beats: map[int32]*beats{1: b}}
	if in, out := r.rates(1); in != 0 || out != 200 {
		t.Errorf("%v in, %v out a second", in, out)
	}
}
