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
	if in, _, out := r.rates(1); in != 0 || out != 200 {
		t.Errorf("%v in, %v out a second", in, out)
	}
}

// What comes out of a journal is no new mail.
func TestRatesOfAJournal(t *testing.T) {
	t.Parallel()
	b := &beats{}
	for i := range int64(5) {
		s := laneSample{at: time.Unix(i, 0)}
		s.in[1], s.entered[1], s.out[1] = 330*i, 300*i, 100*i
		b.add(s)
	}
	r := laneReader{beats: map[int32]*beats{1: b}}
	if in, entered, out := r.rates(1); in != 30 || entered != 300 || out != 100 {
		t.Errorf("%v in, %v entered, %v out a second", in, entered, out)
	}
}

// A clock that goes back is no reason to tell the rates of before until it has
// caught up.
func TestRatesAfterAClockWentBack(t *testing.T) {
	t.Parallel()
	b := &beats{}
	for i, out := range []int64{0, 100, 200, 300, 500, 700, 900} {
		s := laneSample{at: time.Unix(int64(i), 0)}
		if i > 3 {
			s.at = s.at.Add(-time.Hour)
		}
		s.out[1] = out
		b.add(s)
	}
	r := laneReader{beats: map[int32]*beats{1: b}}
	if _, _, out := r.rates(1); out != 200 {
		t.Errorf("%v out a second, want 200", out)
	}
}
