package judge

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/sim"
)

// Each planted failure is called, and by its name alone.
func TestDecide(t *testing.T) {
	begin := time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)
	type plant struct {
		accepted []Accepted
		taken    []sim.Taken
		ends     map[string]string
		repeats  map[string]Number
	}
	clean := func() plant {
		p := plant{ends: map[string]string{}}
		for i := 1; i <= 6; i++ {
			key := fmt.Sprint("m", i)
			a := Accepted{Key: key, ID: "id-" + key, Class: "trigger", Stream: fmt.Sprint("s", i%2), Sequence: int64(i+1) / 2, Tried: begin, At: begin}
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
		{"in doubt", func(p *plant) { p.taken, p.ends["id-m1"] = p.taken[1:], "in_doubt" }, "sent 5, in doubt 1"},
		{"in doubt, but sent", func(p *plant) { p.ends["id-m1"] = "in_doubt" }, "sent 6"},
		{"expired", func(p *plant) {
			p.taken, p.ends["id-m1"], p.accepted[0].ExpiresAt = p.taken[1:], "expired", begin
		}, "sent 5, expired 1"},
		{"expired without a life to end", func(p *plant) { p.taken, p.ends["id-m1"] = p.taken[1:], "expired" }, "sent 5, lost 1"},
		{"superseded", func(p *plant) {
			p.taken, p.ends["id-m1"], p.accepted[0].Supersede, p.accepted[1].Supersede = p.taken[1:], "superseded", "k", "k"
		}, "sent 5, superseded 1"},
		{"superseded, and the newest", func(p *plant) {
			p.taken, p.ends["id-m1"], p.accepted[0].Supersede, p.accepted[1].Supersede = p.taken[1:], "superseded", "k", "k"
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
		{"superseded by nothing", func(p *plant) { p.taken, p.ends["id-m1"] = p.taken[1:], "superseded" }, "sent 5, lost 1"},
		{"any other end", func(p *plant) { p.taken, p.ends["id-m1"] = p.taken[1:], "canceled" }, "sent 5, lost 1"},
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
			v, err := Decide(Case{Client: filepath.Join(dir, "accepted"), Taken: []string{filepath.Join(dir, sim.TakenFile)}, Ends: p.ends, Repeats: p.repeats, Whole: true})
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
			}{{"in doubt", v.InDoubt}, {"expired", v.Expired}, {"superseded", v.Superseded}, {"lost", v.Lost}, {"doubled", v.Doubled}, {"gaps", v.Gaps}, {"stale", v.Stale}, {"forgotten", v.Forgotten}} {
				if n.n != 0 {
					got += fmt.Sprintf(", %s %d", n.name, n.n)
				}
			}
			if got != c.want || v.Accepted != 6 {
				t.Errorf("%s of %d, want %s\n%s", got, v.Accepted, c.want, strings.Join(v.Problems, "\n"))
			}
			if bad := v.Lost+v.Doubled+v.Gaps+v.Stale+v.Forgotten > 0; v.Broken() != bad || bad != (len(v.Problems) > 0) {
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
