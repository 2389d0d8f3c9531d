package drill

import (
	"fmt"
	"testing"
	"time"
)

// Each harm is judged, by the incidents that may tell of it.
func TestNoticing(t *testing.T) {
	begin := time.Date(2026, 12, 1, 8, 0, 0, 0, time.UTC)
	at := func(s float64) time.Time { return begin.Add(time.Duration(s * float64(time.Second))) }
	loss := func(s float64) *harm {
		return &harm{what: fmt.Sprint("lost at ", s), tells: []string{numbering}, began: at(s - 1), bit: at(s)}
	}
	incident := func(kind string, opened float64) seen { return seen{kind: kind, cause: kind, opened: at(opened)} }
	until := func(i seen, s float64) seen { i.resolved = at(s); return i }
	over := func(h *harm, s float64) *harm { h.over = at(s); return h }
	named := func(h *harm) *harm { h.names = "index"; return h }
	for _, c := range []struct {
		name  string
		harms []*harm
		told  []seen
		lines []float64 // when a log names the index
		want  string    // the worst, and how many were not noticed in time
	}{
		{"in time", []*harm{loss(10)}, []seen{incident(numbering, 13)}, nil, "3 0"},
		{"late", []*harm{loss(10)}, []seen{incident(numbering, 21)}, nil, "11 1"},
		{"by nothing", []*harm{loss(10)}, nil, nil, "never 1"},
		{"by another kind", []*harm{loss(10)}, []seen{incident(ledgerAway, 11)}, nil, "never 1"},
		{"by what was open before", []*harm{loss(10)}, []seen{incident(numbering, 8)}, nil, "never 1"},
		{"while it was being done", []*harm{loss(10)}, []seen{incident(numbering, 9.5)}, nil, "0 0"},
		{"the second isn't", []*harm{loss(10), loss(40)}, []seen{until(incident(numbering, 12), 30)}, nil, "never 1"},
		{"the second is late", []*harm{loss(10), loss(40)}, []seen{until(incident(numbering, 12), 30), incident(numbering, 52)}, nil, "12 1"},
		{"the second is the slower", []*harm{loss(10), loss(40)}, []seen{until(incident(numbering, 12), 30), incident(numbering, 49)}, nil, "9 0"},
		{"the first's is open still", []*harm{loss(10), loss(40)}, []seen{incident(numbering, 12)}, nil, "2 0"},
		{"another one's is open still", []*harm{
			{what: "gone", tells: []string{ledgerAway}, began: at(1), bit: at(1)}, loss(40),
		}, []seen{incident(ledgerAway, 4)}, nil, "never 1"},
		{"over before it had to be", []*harm{loss(10), over(loss(40), 45)}, []seen{until(incident(numbering, 12), 30)}, nil, "2 0"},
		{"over after it had to be", []*harm{over(loss(10), 20)}, nil, nil, "never 1"},
		{"it did not bite", []*harm{{what: "nothing", tells: []string{numbering}, began: at(1)}}, nil, nil, "never 0"},
		{"by its subject", []*harm{{what: "token", tells: []string{fcmCredential}, began: at(1), bit: at(1)}}, []seen{
			{kind: "credential", cause: "credential/smtp", opened: at(2)}, {kind: "credential", cause: "credential/fcm", opened: at(5)},
		}, nil, "4 0"},
		{"by the drill", []*harm{{what: "token", began: at(1), bit: at(1), noticed: at(2)}}, nil, nil, "1 0"},
		{"named", []*harm{named(loss(10))}, []seen{incident(numbering, 12)}, []float64{8, 14}, "4 0"},
		{"named before alone", []*harm{named(loss(10))}, []seen{incident(numbering, 12)}, []float64{8}, "never 1"},
		{"named, and no incident", []*harm{named(loss(10))}, nil, []float64{12}, "never 1"},
		{"the second isn't named", []*harm{named(loss(10)), named(loss(40))}, []seen{incident(numbering, 12)}, []float64{11}, "never 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := map[string]seen{}
			for i, x := range c.told {
				all[fmt.Sprint(i)] = x
			}
			told, worst, late := noticing(c.harms, all, func(_ string, after time.Time) (first time.Time) {
				for _, s := range c.lines {
					if !at(s).Before(after) && first.IsZero() {
						first = at(s)
					}
				}
				return first
			})
			got := "never"
			if worst != nil {
				got = fmt.Sprint(*worst)
			}
			if got = fmt.Sprint(got, " ", len(late)); got != c.want {
				t.Errorf("%s, want %s: %v", got, c.want, told)
			}
		})
	}
}

// It is listed what told of a harm, and what of it nobody did.
func TestNoticingLists(t *testing.T) {
	begin := time.Date(2026, 12, 1, 8, 0, 0, 0, time.UTC)
	told, _, _ := noticing([]*harm{
		{what: "gone", tells: []string{kafkaAway, clusterChanged}, began: begin, bit: begin, over: begin.Add(15 * time.Second)},
		{what: "lost", tells: []string{numbering}, began: begin, bit: begin},
		{what: "undone", tells: []string{rolledBack}, began: begin, bit: begin, over: begin.Add(time.Second)},
	}, map[string]seen{"i": {kind: kafkaAway, cause: "kafka_away/main", opened: begin.Add(2 * time.Second)}}, nil)
	want := "[map[harm:gone may_tell:[kafka_away cluster_changed] noticed_after_s:2 over_after_s:15 told_by:kafka_away/main] " +
		"map[harm:lost may_tell:[numbering] noticed_after_s:<nil> told_by:] " +
		"map[harm:undone it_was_over_before:true may_tell:[ledger_rolled_back] noticed_after_s:<nil> over_after_s:1 told_by:]]"
	if got := fmt.Sprint(told); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

// What a process has forgotten is open no more; what one doesn't answer for stays.
func TestRemember(t *testing.T) {
	now := time.Date(2026, 12, 1, 8, 0, 0, 0, time.UTC)
	a, b := seen{by: "api-1", kind: numbering, opened: now}, seen{by: "api-2", kind: numbering, opened: now}
	all := remember(nil, map[string]map[string]seen{"api-1": {"a": a}, "api-2": {"b": b}}, now)
	all = remember(all, map[string]map[string]seen{"api-1": {}}, now.Add(time.Minute))
	if got := all["a"].resolved; !got.Equal(now.Add(time.Minute)) {
		t.Errorf("forgotten: resolved at %s", got)
	}
	if !all["b"].resolved.IsZero() {
		t.Error("nobody was asked, and it is resolved")
	}
}
