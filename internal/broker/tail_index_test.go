package broker

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// One that is in the journals twice was accepted when the first of them was.
func TestTailKeepsTheFirstTime(t *testing.T) {
	tail := (&Broker{}).NewTail()
	j := journaled(t, "", "one", "x")
	first := j.AcceptedAt.Truncate(time.Microsecond)
	for i, later := range []time.Duration{time.Second, 0, time.Minute} {
		j.AcceptedAt = first.Add(later)
		tail.add(place{"t", 0}, 0, int64(i), j, 2)
	}
	if found, _ := tail.Find(j.ID()); found == nil || !found.AcceptedAt.Equal(first) {
		t.Errorf("found %+v, want one of %s", found, first)
	}
}

// What the index has no room for is not known, rather than not there.
func TestTailIsBounded(t *testing.T) {
	tail := (&Broker{}).NewTail()
	tail.most = 1
	tail.knows(time.Now())
	one, two := journaled(t, "", "one", "x"), journaled(t, "", "two", "x")
	tail.add(place{"t", 0}, 0, 5, one, 2)
	if j, known := tail.Find(two.ID().Message(0)); j != nil || !known {
		t.Error("all is known, and yet not")
	}
	tail.add(place{"t", 0}, 0, 6, two, 2)
	if j, known := tail.Find(two.ID().Message(0)); j != nil || known {
		t.Error("what had no room is known")
	}
	if j, known := tail.Find(one.ID().Message(0)); j == nil || !known {
		t.Error("what had room is not told")
	}
	tail.forget(map[place]*reading{{"t", 0}: {number: 0}}, map[place]int64{{"t", 0}: 7}, time.Now(), true)
	if _, known := tail.Find(two.ID().Message(0)); !known || len(tail.index) != 0 {
		t.Error("what was entered is remembered")
	}
}

// What is told of a lane's journal is what was read and not committed, by the last
// time that the index was rid of that; with a large one that is seldom.
func TestTailCountsLanes(t *testing.T) {
	tail := (&Broker{}).NewTail()
	p := place{"t", 0}
	open := map[place]*reading{p: {number: 0}}
	start := time.Now()
	rounds := 0
	forget := func(below int64, caught bool) {
		rounds++
		tail.forget(open, map[place]int64{p: below}, start.Add(time.Duration(rounds)*time.Second), caught)
	}
	tells := func(what string, trigger, campaign int64, after int) {
		t.Helper()
		lanes, at, _ := tail.Lanes()
		got := [2]int64{}
		for l, n := range lanes {
			got[l.Class-message.Trigger] += n
		}
		if got != [2]int64{trigger, campaign} || !at.Equal(start.Add(time.Duration(after)*time.Second)) {
			t.Errorf("%s: %v as of round %v, want %d and %d of %d", what, got, at.Sub(start).Seconds(), trigger, campaign, after)
		}
	}
	one, two, three := journaled(t, "trigger", "one", "x"), journaled(t, "campaign", "two", "x"), journaled(t, "campaign", "three", "x")
	tail.wrote(one)
	tail.add(p, 0, 0, one, 2)
	tail.add(p, 0, 1, two, 2)
	tail.add(p, 0, 2, two, 2) // again
	forget(0, true)
	tells("three records of two", 2, 2, 1)
	forget(1, true)
	tells("the first is committed", 0, 2, 2)
	forget(3, false)
	tail.add(p, 0, 2, three, 2) // the reader is behind the commits
	tells("behind", 0, 2, 3)
	forget(3, true)
	tells("all was read", 0, 0, 4)

	const n = 100_001
	for i := range n {
		var s message.Submission
		s.Lane = message.Lane{Class: message.Trigger, Channel: message.ChannelPush}
		binary.BigEndian.PutUint64(s.Key[:], uint64(i))
		tail.add(p, 0, int64(3+i), message.Journaled{Submission: &s, AcceptedAt: start}, 3)
	}
	forget(4, true)
	tells("a large one", 3*n, 0, 4)
	for range 9 {
		forget(4, true)
	}
	tells("a large one after a while", 3*(n-1), 0, rounds)
}
