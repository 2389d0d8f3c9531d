package judge

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/stormpost/stormpost/internal/sim"
)

// Case is what is judged.
type Case struct {
	Client string            // path of the client's file
	Taken  []string          // paths of the simulators' files
	Ends   map[string]string // by message id: in_doubt, expired or superseded, as the API says
	Told   []string          // ids that the API has ever called sent
}

// staleSlack is how long a hand-over that began in time may take: the last
// check is before the write, the provider's time after it.
const staleSlack = 5 * time.Second

// examples is how many of a kind Verdict.Problems names.
const examples = 3

// Verdict counts messages. Accepted = Sent + InDoubt + Expired + Superseded + Lost.
type Verdict struct {
	Accepted   int
	Sent       int // at a provider once or more
	InDoubt    int
	Expired    int
	Superseded int
	Lost       int // none of these
	Doubled    int // at providers more than once, or one key with two ids
	Gaps       int // numbers of 1..N that nobody has or two have, and messages without one
	Stale      int // taken after their life had ended
	Untrue     int // told as sent, and with no provider
	Problems   []string
	Latency    map[string]Latency // by class, from the accepted request to the provider's file
}

// Latency is percentiles.
type Latency struct{ P50, P99, Max time.Duration }

// Broken says whether a promise was broken.
func (v *Verdict) Broken() bool { return v.Lost+v.Doubled+v.Gaps+v.Stale+v.Untrue > 0 }

// taken is what providers have of one key.
type taken struct {
	times       int
	first, last time.Time
}

// Decide reads the files and decides.
func Decide(c Case) (*Verdict, error) {
	v := &Verdict{Latency: make(map[string]Latency)}
	found := make(map[string]int)
	problem := func(kind, format string, args ...any) {
		if found[kind]++; found[kind] <= examples {
			v.Problems = append(v.Problems, kind+": "+fmt.Sprintf(format, args...))
		}
	}
	accepted := make(map[string]*Accepted)
	err := read(c.Client, func(a Accepted) {
		was := accepted[a.Key]
		switch {
		case was == nil:
			accepted[a.Key] = &a
			return
		case was.ID != a.ID:
			v.Doubled++
			problem("doubled", "%s was answered with the ids %s and %s", a.Key, was.ID, a.ID)
		case was.Sequence == 0:
			was.Sequence = a.Sequence
		case a.Sequence != 0 && a.Sequence != was.Sequence:
			v.Gaps++
			problem("gap", "%s was answered with the numbers %d and %d", a.Key, was.Sequence, a.Sequence)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("judge: the client's file: %w", err)
	}
	at := make(map[string]*taken)
	for _, path := range c.Taken {
		err := sim.ReadTaken(path, func(t sim.Taken) error {
			k := at[t.Subject]
			if k == nil {
				k = &taken{first: t.ReceivedAt}
				at[t.Subject] = k
			}
			k.times, k.last = k.times+1, t.ReceivedAt
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("judge: a provider's file: %w", err)
		}
	}
	// What was never answered 202 may be sent, but not twice.
	for key, k := range at {
		if k.times > 1 {
			v.Doubled++
			problem("doubled", "%s is %d times with a provider", key, k.times)
		}
	}
	told := make(map[string]bool, len(c.Told))
	for _, id := range c.Told {
		told[id] = true
	}
	latencies := make(map[string][]time.Duration)
	for _, key := range slices.Sorted(maps.Keys(accepted)) {
		a, k := accepted[key], at[key]
		v.Accepted++
		if k != nil {
			v.Sent++
			latencies[a.Class] = append(latencies[a.Class], k.first.Sub(a.Tried))
			if !a.ExpiresAt.IsZero() && k.last.After(a.ExpiresAt.Add(staleSlack)) {
				v.Stale++
				problem("stale", "%s was taken at %s, its life had ended at %s", key, k.last.Format(time.RFC3339Nano), a.ExpiresAt.Format(time.RFC3339Nano))
			}
			continue
		}
		if told[a.ID] {
			v.Untrue++
			problem("untrue", "%s (%s) was told as sent, and no provider has it", key, a.ID)
		}
		switch end := c.Ends[a.ID]; {
		case end == "in_doubt":
			v.InDoubt++
		case end == "expired" && !a.ExpiresAt.IsZero():
			v.Expired++
		case end == "superseded" && a.Supersede != "":
			v.Superseded++
		default:
			v.Lost++
			problem("lost", "%s (%s), accepted at %s; the API says %q", key, a.ID, a.At.Format(time.RFC3339Nano), end)
		}
	}
	v.numbers(accepted, problem)
	for class, all := range latencies {
		slices.Sort(all)
		v.Latency[class] = Latency{P50: all[len(all)/2], P99: all[len(all)*99/100], Max: all[len(all)-1]}
	}
	return v, nil
}

// numbers sees to it that each stream's are 1..N.
func (v *Verdict) numbers(accepted map[string]*Accepted, problem func(kind, format string, args ...any)) {
	streams := make(map[string]map[int64]string)
	for _, key := range slices.Sorted(maps.Keys(accepted)) {
		a := accepted[key]
		if streams[a.Stream] == nil {
			streams[a.Stream] = make(map[int64]string)
		}
		switch other, given := streams[a.Stream][a.Sequence]; {
		case a.Sequence < 1:
			v.Gaps++
			problem("gap", "%s has no number", key)
		case given:
			v.Gaps++
			problem("gap", "stream %s: %s and %s both have number %d", a.Stream, other, key, a.Sequence)
		default:
			streams[a.Stream][a.Sequence] = key
		}
	}
	for _, stream := range slices.Sorted(maps.Keys(streams)) {
		given := streams[stream]
		last := int64(0)
		for n := range given {
			last = max(last, n)
		}
		if missing := last - int64(len(given)); missing > 0 {
			v.Gaps += int(missing)
			problem("gap", "stream %s: %d numbers of 1..%d are nobody's", stream, missing, last)
		}
	}
}
