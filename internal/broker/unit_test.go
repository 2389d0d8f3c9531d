package broker

import (
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
)

func TestNewNamesWhatIsWrong(t *testing.T) {
	for want, cfg := range map[string]Config{
		"at least one":         {},
		"brokers":              {Brokers: []string{"kafka"}},
		"kafka.sasl_mechanism": {Brokers: []string{"kafka:9092"}, Mechanism: "GSSAPI"},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v doesn't name %s", err, want)
		}
	}
}

func TestBalanceSpreadsSubmissionsEvenly(t *testing.T) {
	partitions := []int{0, 1, 2, 3}
	n := make([]int, len(partitions))
	for _, it := range items(urgent, 1, 4000, 0) {
		m := encode("t", it)
		n[balance(m, partitions...)]++
	}
	for id, count := range n {
		if count != 1000 {
			t.Errorf("partition %d has %d of 4000", id, count)
		}
	}
	// A key that is none of ours has a place as well.
	_ = balance(kafka.Message{}, partitions...)
}

func TestAuditOfAPartition(t *testing.T) {
	start := time.Now()
	fresh := func(at, end int64) *partition {
		p := &partition{tracker: newTracker(10, 100), end: end}
		p.position.Store(at)
		return p
	}
	if err := fresh(7, 7).audit(7, bounds{0, 9}, start); err != nil {
		t.Errorf("a log that grows: %v", err)
	}
	for name, p := range map[string]*partition{"before the position": fresh(7, 0), "before an earlier end": fresh(3, 9)} {
		if p.audit(p.position.Load(), bounds{0, 5}, start) == nil {
			t.Errorf("an end %s passed", name)
		}
		if at := p.tracker.committable(); at != 0 {
			t.Errorf("an end %s: %d would be committed, not 0", name, at)
		}
	}

	stuck := fresh(3, 0)
	for s := time.Duration(0); s <= stuckAfter; s += auditEvery {
		if err := stuck.audit(stuck.position.Load(), bounds{0, 9}, start.Add(s)); err != nil {
			t.Fatalf("after %s: %v", s, err)
		}
	}
	late := start.Add(stuckAfter + auditEvery)
	stuck.blocked.Store(true) // by the handler, which may
	if err := stuck.audit(stuck.position.Load(), bounds{0, 9}, late); err != nil {
		t.Errorf("a blocked handler: %v", err)
	}
	stuck.blocked.Store(false)
	if err := stuck.audit(stuck.position.Load(), bounds{0, 9}, late.Add(stuckAfter/2)); err != nil {
		t.Errorf("only just released: %v", err)
	}
	if stuck.audit(stuck.position.Load(), bounds{0, 9}, late.Add(2*stuckAfter)) == nil {
		t.Error("a reader that brings nothing passed")
	}
}

func TestTrackerForgetsForGood(t *testing.T) {
	tr := newTracker(10, 100)
	for i := range int64(3) {
		if _, err := tr.add(t.Context(), 100+i, 1); err != nil {
			t.Fatal(err)
		}
	}
	tr.finish(0)
	tr.forget()
	tr.finish(1)
	if at := tr.committable(); at != 0 {
		t.Errorf("%d would be committed, not 0", at)
	}
}

func TestTrackerBeginsAnew(t *testing.T) {
	tr := newTracker(10, 100)
	tr.begin(5)
	if at := tr.committable(); at != 5 {
		t.Errorf("%d would be committed, not 5", at)
	}
	if _, err := tr.add(t.Context(), 5, 1); err != nil {
		t.Fatal(err)
	}
	tr.finish(0)
	if at := tr.committable(); at != 6 {
		t.Errorf("%d would be committed, not 6", at)
	}
}
