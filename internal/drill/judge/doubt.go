package judge

import (
	"slices"
	"time"
)

// End is how a message ended, if not as sent, as the API says.
type End struct {
	State string
	// At is when its last attempt began: of one in doubt, the hand-over.
	At time.Time
	// Lost is when the hand-over was found to have no clear answer; zero if nothing
	// was heard of it any more.
	Lost     time.Time
	Provider string // of a lost answer
}

// Death is the end of a worker by SIGKILL, or of all that the ledger knew of one.
type Death struct{ From, Until time.Time }

// Trouble is a time in which something was harmed. Of is Worker, Store, or a
// provider's name.
type Trouble struct {
	Of          string
	From, Until time.Time
}

// What may be troubled beside providers.
const (
	Worker = "a worker"
	Store  = "a store"
)

// Harms is what may leave a doubt. The zero value allows none.
type Harms struct {
	Deaths   []Death
	Troubles []Trouble
	InHand   int           // how many hand-overs a worker may have begun at a time
	Hold     time.Duration // for how long it may have one in hand that no provider takes, without trouble
}

// doubted is a message in doubt that no provider has.
type doubted struct {
	*Accepted
	end End
}

// unfounded is those of all that nothing gave a reason for. A lost answer needs
// trouble of its provider or of a worker while it was waited for. Silence needs a
// worker's death while it had the message in hand, and each death explains no
// more than a worker may have there.
func (h *Harms) unfounded(all []doubted) (bad []doubted) {
	var silent []doubted
	for _, d := range all {
		switch {
		case d.end.At.IsZero():
			bad = append(bad, d)
		case d.end.Lost.IsZero():
			silent = append(silent, d)
		case !slices.ContainsFunc(h.Troubles, func(t Trouble) bool {
			return (t.Of == d.end.Provider || t.Of == Worker) && !t.From.After(d.end.Lost.Add(clockSlack)) && !t.Until.Before(d.end.At.Add(-clockSlack))
		}):
			bad = append(bad, d)
		}
	}
	// The oldest first: what a death is too late for, later ones are as well.
	slices.SortFunc(silent, func(a, b doubted) int { return a.end.At.Compare(b.end.At) })
	deaths := slices.Clone(h.Deaths)
	slices.SortFunc(deaths, func(a, b Death) int { return a.From.Compare(b.From) })
	for _, death := range deaths {
		had := 0
		silent = slices.DeleteFunc(silent, func(d doubted) bool {
			if had == h.InHand || d.end.At.After(death.Until.Add(clockSlack)) || h.calm(d.end.At, death.From) > h.Hold+clockSlack {
				return false
			}
			had++
			return true
		})
	}
	return append(bad, silent...)
}

// calm is how much of the time between two moments was without trouble.
func (h *Harms) calm(from, until time.Time) time.Duration {
	troubles := slices.Clone(h.Troubles)
	slices.SortFunc(troubles, func(a, b Trouble) int { return a.From.Compare(b.From) })
	total := time.Duration(0)
	for _, t := range troubles {
		if !t.From.Before(until) {
			break
		}
		if t.From.After(from) {
			total += t.From.Sub(from)
		}
		if t.Until.After(from) {
			from = t.Until
		}
	}
	return total + max(0, until.Sub(from))
}
