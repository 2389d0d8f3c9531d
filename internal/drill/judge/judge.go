package judge

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/stormpost/stormpost/internal/sim"
)

// Case is what is judged.
type Case struct {
	Client string          // path of the client's file
	Taken  []string        // paths of the simulators' files
	Ends   map[string]End  // by message id: of all that the API calls something else than sent
	Sent   map[string]bool // ids that the API calls sent in the end
	Told   []Told          // what the API has ever told that is for good
	Harms  Harms           // what was harmed, and when
	// Repeats are the messages, by id, that ended as the repeat of another without
	// a key: they have a number, and stand for the same key as that one.
	Repeats map[string]Number
	Whole   bool // no store was lost for good: what was accepted must be known at the end
}

// Told is what the API once said of a message.
type Told struct{ ID, State string }

// Number is a message's number in its stream.
type Number struct {
	Stream   string
	Sequence int64
}

// staleSlack is how long a hand-over that began in time may take: the last
// check is before the write, the provider's time after it.
const staleSlack = 5 * time.Second

// raceSlack is how long an older message under a supersede key may still go its
// way when the ledger has a newer one: its claim may have come before.
const raceSlack = 40 * time.Second

// clockSlack is what the clocks of the ledger and of the judge's witnesses may
// differ by, and how late any of them may write down what has happened.
const clockSlack = 2 * time.Second

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
	Untrue     int // told as sent, and with no provider, or the other way round; or told as ended otherwise than it did
	Unfounded  int // of InDoubt: nothing happened that would leave a doubt
	Forgotten  int // accepted, and taken for new when submitted again at the end
	Problems   []string
	Latency    map[string]Latency // by class, from the accepted request to the provider's file
}

// Broken says whether a promise was broken.
func (v *Verdict) Broken() bool {
	return v.Lost+v.Doubled+v.Gaps+v.Stale+v.Untrue+v.Unfounded+v.Forgotten > 0
}

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
		if was == nil {
			a.Known = a.Sequence != 0
			accepted[a.Key] = &a
			return
		}
		if c.Whole && a.Last && a.Fresh {
			v.Forgotten++
			problem("lost", "%s (%s), accepted at %s, was not known any more when it was submitted again", a.Key, a.ID, was.At.Format(time.RFC3339Nano))
		}
		_, ends := c.Repeats[a.ID]
		_, ended := c.Repeats[was.ID]
		switch {
		case was.ID != a.ID && ends:
		case was.ID != a.ID && (ended || a.Keyless):
			// Without a key nobody promises one id: a double is what providers have.
			was.ID, was.Sequence = a.ID, a.Sequence
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
	told := make(map[string]bool, len(c.Told)) // as sent
	slices.SortFunc(c.Told, func(a, b Told) int { return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.State, b.State)) })
	for _, t := range c.Told {
		if t.State == "sent" { // a ledger that was rolled back may know less by now
			told[t.ID] = true
			continue
		}
		end := c.Ends[t.ID].State
		if c.Sent[t.ID] {
			end = "sent"
		}
		if end != t.State {
			v.Untrue++
			problem("untrue", "%s was told as %q, and in the end the API says %q", t.ID, t.State, end)
		}
	}
	latencies := make(map[string][]latency)
	var doubts []doubted
	for _, key := range slices.Sorted(maps.Keys(accepted)) {
		a, k := accepted[key], at[key]
		v.Accepted++
		if k != nil {
			v.Sent++
			from := a.First
			if a.Keyless && a.Last { // without a key nothing is tried again before the end
				from = a.Tried
			}
			latencies[a.Class] = append(latencies[a.Class], latency{from, k.first.Sub(from)})
			if !a.ExpiresAt.IsZero() && k.last.After(a.ExpiresAt.Add(staleSlack)) {
				v.Stale++
				problem("stale", "%s was taken at %s, its life had ended at %s", key, k.last.Format(time.RFC3339Nano), a.ExpiresAt.Format(time.RFC3339Nano))
			}
			// Which of several ids a repeat without a key ended under is nobody's promise.
			if end := c.Ends[a.ID]; !a.Keyless && !c.Sent[a.ID] && end.State != "in_doubt" && end.State != "sending" {
				v.Untrue++
				problem("untrue", "%s (%s) is with a provider, and the API says %q", key, a.ID, end.State)
			}
			continue
		}
		if told[a.ID] || c.Sent[a.ID] {
			v.Untrue++
			problem("untrue", "%s (%s) was told as sent, and no provider has it", key, a.ID)
		}
		switch end := c.Ends[a.ID]; {
		case end.State == "in_doubt":
			v.InDoubt++
			doubts = append(doubts, doubted{a, end})
		case end.State == "expired" && !a.ExpiresAt.IsZero() && !end.At.Before(a.ExpiresAt.Add(-clockSlack)):
			v.Expired++
		case end.State == "superseded" && a.Supersede != "":
			v.Superseded++
		default:
			v.Lost++
			problem("lost", "%s (%s), accepted at %s; the API says %q", key, a.ID, a.At.Format(time.RFC3339Nano), end.State)
		}
	}
	for _, d := range c.Harms.unfounded(doubts) {
		v.Unfounded++
		problem("unfounded", "%s (%s) is in doubt since a hand-over at %s, and nothing was harmed then that would leave one", d.Key, d.ID, d.end.At.Format(time.RFC3339Nano))
	}
	v.superseding(accepted, at, c.Ends, problem)
	v.numbers(accepted, c.Repeats, problem)
	for class, all := range latencies {
		v.Latency[class] = latencyOf(all)
	}
	return v, nil
}

// superseding sees to it that of the messages under one key the newest was not
// superseded, and that no older one was sent long after it. Which of two is newer
// is certain when one was answered before the other was first submitted.
func (v *Verdict) superseding(accepted map[string]*Accepted, at map[string]*taken, ends map[string]End, problem func(kind, format string, args ...any)) {
	under := make(map[string][]*Accepted)
	for _, key := range slices.Sorted(maps.Keys(accepted)) {
		if a := accepted[key]; a.Supersede != "" {
			under[a.Supersede] = append(under[a.Supersede], a)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(under)) {
		for _, a := range under[key] {
			// What was answered without a number may have come to the ledger late.
			newest, newer := true, time.Time{}
			for _, b := range under[key] {
				newest = newest && (a == b || b.At.Before(a.First))
				if a != b && a.At.Before(b.First) && b.Known && (newer.IsZero() || b.At.Before(newer)) {
					newer = b.At
				}
			}
			switch k := at[a.Key]; {
			case k == nil && newest && ends[a.ID].State == "superseded":
				v.Lost++
				v.Superseded--
				problem("lost", "%s (%s) is superseded, and none under %s is newer", a.Key, a.ID, key)
			case k != nil && !newer.IsZero() && k.first.After(newer.Add(raceSlack)):
				v.Stale++
				problem("stale", "%s was sent at %s, although one under %s was newer from %s on", a.Key, k.first.Format(time.RFC3339Nano), key, newer.Format(time.RFC3339Nano))
			}
		}
	}
}

// numbers sees to it that each stream's are 1..N.
func (v *Verdict) numbers(accepted map[string]*Accepted, repeats map[string]Number, problem func(kind, format string, args ...any)) {
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
	for _, id := range slices.Sorted(maps.Keys(repeats)) {
		n := repeats[id]
		if streams[n.Stream] == nil {
			streams[n.Stream] = make(map[int64]string)
		}
		if other, given := streams[n.Stream][n.Sequence]; given {
			v.Gaps++
			problem("gap", "stream %s: %s and %s both have number %d", n.Stream, other, id, n.Sequence)
		}
		streams[n.Stream][n.Sequence] = id
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
