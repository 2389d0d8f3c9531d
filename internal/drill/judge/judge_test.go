package judge

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/sim"
)

// A message's time counts from its first try, however often it is submitted again.
// Without a key what comes at the end is a submission of its own.
func TestLatency(t *testing.T) {
	begin := time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)
	dir := t.TempDir()
	f, err := Create(filepath.Join(dir, "accepted"))
	if err != nil {
		t.Fatal(err)
	}
	store, err := sim.OpenStore(dir, sim.StoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for class, a := range map[string]Accepted{
		"transactional": {Key: "tried again"},
		"campaign":      {Key: "without a key", Keyless: true, Last: true},
	} {
		a.ID, a.Class, a.Stream, a.Sequence = a.Key, class, class, 1
		a.First, a.Tried, a.At = begin, begin.Add(40*time.Second), begin.Add(41*time.Second)
		if err := errors.Join(f.Append(a), store.Append(sim.Taken{Subject: a.Key, ReceivedAt: begin.Add(42 * time.Second)})); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Close(), store.Close()); err != nil {
		t.Fatal(err)
	}
	v, err := Decide(Case{Client: filepath.Join(dir, "accepted"), Taken: []string{filepath.Join(dir, sim.TakenFile)}})
	if err != nil {
		t.Fatal(err)
	}
	for class, want := range map[string]time.Duration{"transactional": 42 * time.Second, "campaign": 2 * time.Second} {
		if got := v.Latency[class].Max; got != want {
			t.Errorf("%s: %s, want %s", class, got, want)
		}
	}
}

// Each planted failure is called, and by its name alone.
func TestDecide(t *testing.T) {
	begin := time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)
	type plant struct {
		accepted []Accepted
		taken    []sim.Taken
		ends     map[string]End
		repeats  map[string]Number
		harms    Harms
		told     []Told
	}
	after := func(seconds float64) time.Time { return begin.Add(time.Duration(seconds * float64(time.Second))) }
	// silent has the first n messages in doubt, each handed over at begin, and nothing heard of it.
	silent := func(p *plant, n int) {
		p.taken = p.taken[n:]
		for i := range n {
			p.ends[p.accepted[i].ID] = End{State: "in_doubt", At: begin}
		}
		p.harms.InHand, p.harms.Hold = 2, 10*time.Second
	}
	killed := func(p *plant, seconds float64) {
		p.harms.Deaths = append(p.harms.Deaths, Death{after(seconds), after(seconds + 0.1)})
	}
	// lost has the first message in doubt since its answer was lost after 5 s.
	lost := func(p *plant, of string, from, until float64) {
		p.taken, p.ends["id-m1"] = p.taken[1:], End{State: "in_doubt", At: begin, Lost: after(5), Provider: "smtp"}
		p.harms.Troubles = []Trouble{{of, after(from), after(until)}}
	}
	clean := func() plant {
		p := plant{ends: map[string]End{}}
		for i := 1; i <= 6; i++ {
			key := fmt.Sprint("m", i)
			a := Accepted{Key: key, ID: "id-" + key, Class: "trigger", Stream: fmt.Sprint("s", i%2), Sequence: int64(i+1) / 2, First: begin, Tried: begin, At: begin}
			p.accepted = append(p.accepted, a)
			p.taken = append(p.taken, sim.Taken{Subject: key, ReceivedAt: begin.Add(time.Second)})
		}
		return p
	}
	for _, c := range []struct {
		name  string
		plant func(*plant)
		want  string
	}{
		{"clean", func(*plant) {}, "sent 6"},
		{"the same answer again", func(p *plant) { p.accepted = append(p.accepted, p.accepted[2]) }, "sent 6"},
		{"numbered by a later answer", func(p *plant) {
			p.accepted = append(p.accepted, p.accepted[2])
			p.accepted[2].Sequence = 0
		}, "sent 6"},
		{"lost", func(p *plant) { p.taken = p.taken[1:] }, "sent 5, lost 1"},
		{"in doubt", func(p *plant) { silent(p, 1); killed(p, 1) }, "sent 5, in doubt 1"},
		{"in doubt, but sent", func(p *plant) { p.ends["id-m1"] = End{State: "in_doubt"} }, "sent 6"},
		{"in doubt for no reason", func(p *plant) { silent(p, 1) }, "sent 5, in doubt 1, unfounded 1"},
		{"in doubt since nobody knows when", func(p *plant) {
			silent(p, 1)
			killed(p, 1)
			p.ends["id-m1"] = End{State: "in_doubt"}
		}, "sent 5, in doubt 1, unfounded 1"},
		{"more in doubt than a worker has in hand", func(p *plant) { silent(p, 3); killed(p, 1) }, "sent 3, in doubt 3, unfounded 1"},
		{"as many as two have", func(p *plant) { silent(p, 3); killed(p, 2); killed(p, 1) }, "sent 3, in doubt 3"},
		{"in doubt after the death", func(p *plant) { silent(p, 1); killed(p, -3) }, "sent 5, in doubt 1, unfounded 1"},
		{"in doubt long before the death", func(p *plant) { silent(p, 1); killed(p, 20) }, "sent 5, in doubt 1, unfounded 1"},
		{"kept in hand by a store", func(p *plant) {
			silent(p, 1)
			killed(p, 20)
			p.harms.Troubles = []Trouble{{Store, after(6), after(12)}, {"fcm", after(2), after(9)}}
		}, "sent 5, in doubt 1"},
		{"a lost answer", func(p *plant) { lost(p, "smtp", 3, 4) }, "sent 5, in doubt 1"},
		{"a lost answer to one that stood still", func(p *plant) { lost(p, Worker, -5, 1) }, "sent 5, in doubt 1"},
		{"a lost answer of another", func(p *plant) { lost(p, "fcm", 3, 4) }, "sent 5, in doubt 1, unfounded 1"},
		{"an answer lost before", func(p *plant) { lost(p, "smtp", -9, -3) }, "sent 5, in doubt 1, unfounded 1"},
		{"an answer lost later", func(p *plant) { lost(p, "smtp", 8, 9) }, "sent 5, in doubt 1, unfounded 1"},
		{"expired too early", func(p *plant) {
			p.taken, p.ends["id-m1"], p.accepted[0].ExpiresAt = p.taken[1:], End{State: "expired", At: begin}, after(3)
		}, "sent 5, lost 1"},
		{"sent, and told as expired", func(p *plant) { p.ends["id-m1"] = End{State: "expired", At: begin} }, "sent 6, untrue 1"},
		{"sent, and told as waiting", func(p *plant) { p.ends["id-m1"] = End{State: "waiting"} }, "sent 6, untrue 1"},
		{"sent, and not ended yet", func(p *plant) { p.ends["id-m1"] = End{State: "sending"} }, "sent 6"},
		{"expired", func(p *plant) {
			p.taken, p.ends["id-m1"], p.accepted[0].ExpiresAt = p.taken[1:], End{State: "expired", At: begin}, begin
		}, "sent 5, expired 1"},
		{"told as expired, and so it ended", func(p *plant) {
			p.taken, p.ends["id-m1"], p.accepted[0].ExpiresAt = p.taken[1:], End{State: "expired", At: begin}, begin
			p.told = []Told{{"id-m1", "expired"}, {"id-m2", "sent"}}
		}, "sent 5, expired 1"},
		{"told as expired, and sent", func(p *plant) { p.told = []Told{{"id-m1", "expired"}} }, "sent 6, untrue 1"},
		{"told as failed, and in doubt", func(p *plant) {
			silent(p, 1)
			killed(p, 1)
			p.told = []Told{{"id-m1", "failed"}}
		}, "sent 5, in doubt 1, untrue 1"},
		{"told as held, and unknown", func(p *plant) { p.told = []Told{{"id-x", "held"}} }, "sent 6, untrue 1"},
		{"told as sent, and in doubt", func(p *plant) {
			silent(p, 1)
			killed(p, 1)
			p.told = []Told{{"id-m1", "sent"}}
		}, "sent 5, in doubt 1, untrue 1"},
		{"expired without a life to end", func(p *plant) { p.taken, p.ends["id-m1"] = p.taken[1:], End{State: "expired", At: begin} }, "sent 5, lost 1"},
		{"superseded", func(p *plant) {
			p.taken, p.ends["id-m1"], p.accepted[0].Supersede, p.accepted[1].Supersede = p.taken[1:], End{State: "superseded"}, "k", "k"
		}, "sent 5, superseded 1"},
		{"superseded, and the newest", func(p *plant) {
			p.taken, p.ends["id-m1"], p.accepted[0].Supersede, p.accepted[1].Supersede = p.taken[1:], End{State: "superseded"}, "k", "k"
			p.accepted[0].First = begin.Add(time.Second)
		}, "sent 5, lost 1"},
		{"sent long after a newer one", func(p *plant) {
			p.accepted[0].Supersede, p.accepted[1].Supersede = "k", "k"
			p.accepted[1].First, p.taken[0].ReceivedAt = begin.Add(time.Second), begin.Add(time.Second+raceSlack)
		}, "sent 6, stale 1"},
		{"not known any more", func(p *plant) {
			again := p.accepted[2]
			again.Last, again.Fresh = true, true
			p.accepted = append(p.accepted, again)
		}, "sent 6, forgotten 1"},
		{"superseded by nothing", func(p *plant) { p.taken, p.ends["id-m1"] = p.taken[1:], End{State: "superseded"} }, "sent 5, lost 1"},
		{"any other end", func(p *plant) { p.taken, p.ends["id-m1"] = p.taken[1:], End{State: "canceled"} }, "sent 5, lost 1"},
		{"doubled", func(p *plant) { p.taken = append(p.taken, p.taken[0]) }, "sent 6, doubled 1"},
		{"doubled under another id", func(p *plant) {
			twin := p.taken[0]
			twin.MessageID = "another"
			p.taken = append(p.taken, twin)
		}, "sent 6, doubled 1"},
		{"doubled, never answered", func(p *plant) {
			p.taken = append(p.taken, sim.Taken{Subject: "stranger"}, sim.Taken{Subject: "stranger"})
		}, "sent 6, doubled 1"},
		{"two ids for one key", func(p *plant) {
			twin := p.accepted[0]
			twin.ID = "another"
			p.accepted = append(p.accepted, twin)
		}, "sent 6, doubled 1"},
		{"a repeat that ended", func(p *plant) {
			twin := p.accepted[0]
			twin.ID, twin.Sequence = "another", 0
			p.accepted, p.repeats = append(p.accepted, twin), map[string]Number{"another": {twin.Stream, 4}}
		}, "sent 6"},
		{"the first ended as the repeat", func(p *plant) {
			twin := p.accepted[0]
			twin.ID, twin.Sequence = "another", 4
			p.accepted, p.repeats = append(p.accepted, twin), map[string]Number{p.accepted[0].ID: {twin.Stream, p.accepted[0].Sequence}}
		}, "sent 6"},
		{"a repeat with another's number", func(p *plant) {
			p.repeats = map[string]Number{"another": {p.accepted[0].Stream, p.accepted[0].Sequence}}
		}, "sent 6, gaps 1"},
		{"gap", func(p *plant) { p.accepted[5].Sequence = 9 }, "sent 6, gaps 6"},
		{"two with one number", func(p *plant) { p.accepted[4].Sequence = 2 }, "sent 6, gaps 1"},
		{"no number", func(p *plant) { p.accepted[5].Sequence = 0 }, "sent 6, gaps 1"},
		{"another number later", func(p *plant) {
			twin := p.accepted[0]
			twin.Sequence = 7
			p.accepted = append(p.accepted, twin)
		}, "sent 6, gaps 1"},
		{"stale", func(p *plant) { p.accepted[0].ExpiresAt = begin.Add(-staleSlack) }, "sent 6, stale 1"},
		{"in the last moment", func(p *plant) { p.accepted[0].ExpiresAt = begin }, "sent 6"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := clean()
			c.plant(&p)
			dir := t.TempDir()
			f, err := Create(filepath.Join(dir, "accepted"))
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range p.accepted {
				if err := f.Append(a); err != nil {
					t.Fatal(err)
				}
			}
			store, err := sim.OpenStore(dir, sim.StoreOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if err := store.Append(p.taken...); err != nil {
				t.Fatal(err)
			}
			sent := map[string]bool{}
			for _, a := range p.accepted {
				_, other := p.ends[a.ID]
				sent[a.ID] = !other && slices.ContainsFunc(p.taken, func(x sim.Taken) bool { return x.Subject == a.Key })
			}
			v, err := Decide(Case{
				Client: filepath.Join(dir, "accepted"), Taken: []string{filepath.Join(dir, sim.TakenFile)},
				Ends: p.ends, Sent: sent, Repeats: p.repeats, Harms: p.harms, Told: p.told, Whole: true,
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			if err := store.Close(); err != nil {
				t.Error(err)
			}
			got := fmt.Sprint("sent ", v.Sent)
			for _, n := range []struct {
				name string
				n    int
			}{{"in doubt", v.InDoubt}, {"expired", v.Expired}, {"superseded", v.Superseded}, {"lost", v.Lost}, {"doubled", v.Doubled}, {"gaps", v.Gaps}, {"stale", v.Stale}, {"untrue", v.Untrue}, {"unfounded", v.Unfounded}, {"forgotten", v.Forgotten}} {
				if n.n != 0 {
					got += fmt.Sprintf(", %s %d", n.name, n.n)
				}
			}
			if got != c.want || v.Accepted != 6 {
				t.Errorf("%s of %d, want %s\n%s", got, v.Accepted, c.want, strings.Join(v.Problems, "\n"))
			}
			if bad := v.Lost+v.Doubled+v.Gaps+v.Stale+v.Untrue+v.Unfounded+v.Forgotten > 0; v.Broken() != bad || bad != (len(v.Problems) > 0) {
				t.Errorf("broken %v, problems %v", v.Broken(), v.Problems)
			}
		})
	}
}

// The judge must not stand on what it judges, by any detour.
func TestJudgeImportsNothingThatItJudges(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	const module = "github.com/stormpost/stormpost/"
	seen := 0
	for _, dep := range strings.Fields(string(out)) {
		ours, ok := strings.CutPrefix(dep, module)
		if !ok {
			continue
		}
		seen++
		switch ours {
		case "internal/drill/judge", "internal/sim", "internal/message":
		default:
			t.Errorf("the judge stands on %s", ours)
		}
	}
	if seen < 2 {
		t.Errorf("go list tells of %d packages of ours", seen)
	}
}
