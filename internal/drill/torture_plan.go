package drill

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/stormpost/stormpost/internal/sim"
)

// faultKinds are the kinds of faults.
var faultKinds = []string{"kill", "stop", "postgres", "kafka", "network", "slow", "refuse", "lose", "disk", "clock"}

// clockOf begins the target that is a server's clock.
const clockOf = "the clock of "

// fault is one that was drawn.
type fault struct {
	At, Span time.Duration // from the beginning on
	Target   string
	Kind     string
	How      string
	Node     int // of Kafka; -1: all
	Lag      time.Duration
	Share    float64 // of a provider's conversations
}

// String is what the timeline says.
func (f fault) String() string {
	who := f.Target
	if f.Target == "kafka" {
		if who = fmt.Sprint("kafka node ", f.Node); f.Node < 0 {
			who = "all of kafka"
		}
	}
	if f.Kind == "network" {
		who = "the network to " + who
	}
	how := cmp.Or(f.How, f.Kind)
	if f.Lag > 0 {
		how += fmt.Sprintf(" (%s)", f.Lag)
	}
	if f.Share > 0 {
		how += fmt.Sprintf(", %.0f %% of it", 100*f.Share)
	}
	return fmt.Sprintf("%s %s, for %s", who, how, f.Span.Round(100*time.Millisecond))
}

// ways are the kinds that a target can suffer, each as often as it stands there.
type ways map[string][]string

// draw is the faults of a seed, by time: what one target suffers doesn't overlap,
// what several do may. The same seed, span and ways give the same faults.
func draw(seed uint64, span time.Duration, able ways) (plan []fault) {
	for target, kinds := range able {
		h := fnv.New64a()
		h.Write([]byte(target))
		rng := rand.New(rand.NewPCG(seed, h.Sum64()))
		between := func(a, b time.Duration) time.Duration { return a + time.Duration(rng.Float64()*float64(b-a)) }
		gap := min(max(span/4, 5*time.Second), 40*time.Second)
		for at := between(time.Second, max(2*time.Second, min(gap, span/3))); len(kinds) > 0; {
			f := fault{At: at, Target: target, Kind: kinds[rng.IntN(len(kinds))]}
			f.specify(rng, between)
			if f.At+f.Span > span {
				break
			}
			plan = append(plan, f)
			at += f.Span + between(gap/4, gap)
		}
	}
	slices.SortFunc(plan, func(a, b fault) int { return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.Target, b.Target)) })
	return plan
}

func (f *fault) specify(rng *rand.Rand, between func(a, b time.Duration) time.Duration) {
	one := func(of ...string) string { return of[rng.IntN(len(of))] }
	f.Span = between(3*time.Second, 12*time.Second)
	if rng.IntN(6) == 0 {
		f.Span *= 2 // longer than claims, sessions and heartbeats last
	}
	switch f.Kind {
	case "kill":
		f.How, f.Span = "is killed and started again", between(0, 4*time.Second)
	case "stop":
		f.How = "stands still (SIGSTOP)"
	case "postgres":
		if f.How = one("killed", "hangs", "killed", "hangs", "is restarted"); f.How == "is restarted" {
			f.Span = 0
		}
	case "kafka":
		f.Node, f.How = rng.IntN(3), one("killed", "hangs", "killed", "hangs", "all are killed")
		if f.How == "all are killed" {
			f.Node = -1
		}
	case "network":
		f.How = one(string(refusing), string(halfOpen), string(lagging), string(answers))
		f.Node = rng.IntN(5) - 2 // in two of five, all
		f.Node = max(f.Node, -1)
		if f.How == string(lagging) {
			f.Lag = between(50*time.Millisecond, 500*time.Millisecond).Round(time.Millisecond)
		}
	case "slow":
		f.Lag = between(200*time.Millisecond, 2*time.Second).Round(time.Millisecond)
		f.Share = 0.5
	case "refuse":
		f.How, f.Share = one("refuses", "drops connections"), 0.3+0.7*rng.Float64()
	case "lose":
		f.How, f.Share = one("takes and drops", "takes and hangs", "takes and answers garbage", "drops and takes nothing"), 0.02+0.1*rng.Float64()
	case "disk":
		f.How = "is out of disk"
	case "clock":
		f.Lag = between(10*time.Second, 10*time.Minute).Round(time.Second)
		if f.How = "is turned on"; rng.IntN(2) == 0 {
			f.How = "is turned back"
		}
	}
}

// misbehave is a provider's fault as the simulators know it. None refuses a message
// for good: that would be its end, and rightly.
func misbehave(f fault, email bool) []sim.Fault {
	fault := func(step sim.Step, do sim.Action) sim.Fault {
		return sim.Fault{Step: step, Do: do, Probability: f.Share, Delay: f.Lag}
	}
	switch f.How {
	case "refuses":
		if email {
			mail, dial := fault(sim.StepMail, sim.Answer), fault(sim.StepConnect, sim.Answer)
			mail.Code, dial.Code = 451, 421
			return []sim.Fault{mail, dial}
		}
		x := fault(sim.StepBody, sim.Answer)
		x.Code, x.RetryAfter = http.StatusTooManyRequests, time.Second // else it is a minute
		return []sim.Fault{x}
	case "drops connections":
		if email { // its connections last
			return []sim.Fault{fault(sim.StepConnect, sim.Drop), fault(sim.StepMail, sim.Drop)}
		}
		return []sim.Fault{fault(sim.StepConnect, sim.Drop)}
	case "takes and drops":
		return []sim.Fault{fault(sim.StepReply, sim.Drop)}
	case "takes and hangs":
		return []sim.Fault{fault(sim.StepReply, sim.Hang)}
	case "takes and answers garbage":
		return []sim.Fault{fault(sim.StepReply, sim.Garbage)}
	case "drops and takes nothing":
		if email {
			return []sim.Fault{fault(sim.StepDot, sim.Drop)}
		}
		return []sim.Fault{fault(sim.StepBody, sim.Drop)}
	}
	if email {
		return []sim.Fault{fault(sim.StepMail, sim.Slow), fault(sim.StepDot, sim.Slow)}
	}
	return []sim.Fault{fault(sim.StepBody, sim.Slow), fault(sim.StepReply, sim.Slow)}
}

func (s *Stage) wants(kind string) bool {
	return len(s.opt.Faults) == 0 || slices.Contains(s.opt.Faults, kind)
}

// faults is what can be suffered here, and why the rest can't.
func (s *Stage) faults() (able ways, left map[string]string) {
	able, left = ways{}, map[string]string{}
	add := func(target string, kinds ...string) {
		for _, k := range kinds {
			if s.wants(k) {
				able[target] = append(able[target], k)
			}
		}
	}
	for _, p := range append(append([]*server{}, s.apis...), s.others...) {
		add(p.name, "kill", "kill", "stop")
	}
	for _, p := range s.others {
		if strings.HasPrefix(p.name, "worker") {
			add(clockOf+p.name, "clock")
		}
	}
	add("smtp", "slow", "refuse", "lose")
	add("fcm", "slow", "refuse", "lose")
	add("postgres", "network")
	if s.Postgres != nil {
		add("postgres", "postgres")
	} else if s.wants("postgres") {
		left["postgres"] = "it was given, and is not the drill's to harm"
	}
	if why := s.diskless(); why == "" {
		add("postgres", "disk")
	} else if s.wants("disk") {
		left["disk"] = why
	}
	if s.Kafka != nil {
		add("kafka", "kafka", "network")
	} else if s.wants("kafka") || s.wants("network") {
		left["kafka"] = "it was given, and is not the drill's to harm"
	}
	return able, left
}
