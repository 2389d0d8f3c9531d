package delivery

import (
	"fmt"
	"slices"
	"strings"

	"github.com/stormpost/stormpost/internal/message"
)

// Order is which providers some messages go to, and in which order. What the
// first defers, or can't be asked for, goes to the next.
type Order struct {
	Channel   message.Channel
	Class     message.Class // 0: all
	Tenant    string        // its name; empty: all
	Providers []string      // of Config.Routes
}

// order is an Order as a lane has it.
type order struct {
	tenant string
	tracks []*track
}

// setOrders gives the lane its orders, as all have them.
func (l *lane) setOrders(all []Order) error {
	for i, o := range all {
		if o.Channel != l.lane.Channel {
			continue
		}
		mine := order{tenant: o.Tenant}
		for _, name := range o.Providers {
			t := l.named(name)
			if t == nil {
				return fmt.Errorf("delivery: order %d names provider %q, which is none of %s", i, name, l.lane.Channel)
			}
			mine.tracks = append(mine.tracks, t)
		}
		if len(mine.tracks) == 0 {
			return fmt.Errorf("delivery: order %d names no provider", i)
		}
		if o.Class == 0 || o.Class == l.lane.Class {
			l.orders = append(l.orders, mine)
			l.tenants = l.tenants || o.Tenant != ""
		}
	}
	return nil
}

// named is the track of a provider, or nil.
func (l *lane) named(provider string) *track {
	for _, t := range l.tracks {
		if t.gate.provider.Name() == provider {
			return t
		}
	}
	return nil
}

// tracksFor is where content of a tenant may go, best first: by the first order
// that fits, without those that can't take it, as its platform. Without
// one, it is the first provider that takes it.
func (l *lane) tracksFor(content *message.Content, tenant string) []*track {
	for _, o := range l.orders {
		if o.tenant != "" && o.tenant != tenant {
			continue
		}
		fit := make([]*track, 0, len(o.tracks))
		for _, t := range o.tracks {
			if t.gate.takes(content) {
				fit = append(fit, t)
			}
		}
		if len(fit) > 0 {
			return fit
		}
	}
	gate := l.gates.of(content)
	i := slices.IndexFunc(l.tracks, func(t *track) bool { return t.gate == gate })
	return l.tracks[i : i+1]
}

// choose says where o goes now, and where else it might. The attempt before may
// have been deferred: then the next provider has its turn, and behind the last
// the first. Whatever else became of it, lost or rejected, the message stays with
// that provider: nobody else can know whether it was taken. So it does for good
// once an answer was lost and a repeat is absorbed there.
func (l *lane) choose(o *offer, tracks []*track) (to *track, rest []*track) {
	before, start := o.item.Before, 0
	if name, pinned := strings.CutPrefix(before.Basis, repeatPolicy); pinned {
		name, _, _ = strings.Cut(name, ":")
		if t := l.named(name); t != nil {
			return t, nil
		}
	}
	if last := l.named(before.Provider); last != nil {
		i := slices.Index(tracks, last)
		switch before.Outcome {
		case message.Deferred:
			start = i + 1 // of none: the first
		case message.Returned: // nobody saw it
			start = max(i, 0)
		default:
			return last, nil
		}
	}
	if len(tracks) == 1 {
		return tracks[0], nil
	}
	turns := slices.Concat(tracks[start:], tracks[:start])
	for i, t := range turns {
		if t.gate.usable() {
			return t, slices.Delete(turns, i, i+1)
		}
	}
	return turns[0], turns[1:]
}

// elsewhere says whether one of o's other providers can be used.
func (o *offer) elsewhere() bool {
	return slices.ContainsFunc(o.rest, func(t *track) bool { return t.gate.usable() })
}

// assign gives o to a sender of the provider that it goes to now.
func (s *sender) assign(o *offer) {
	tenant := ""
	if s.lane.tenants && o.item.Tenant != 0 {
		err := s.insist(s.soft, opContent, func() (err error) {
			tenant, err = s.cfg.Ledger.TenantName(s.soft, o.item.Tenant)
			return err
		})
		if err != nil {
			s.lane.giveBack(o)
			return
		}
	}
	var to *track
	to, o.rest = s.lane.choose(o, s.lane.tracksFor(o.content, tenant))
	s.give(o, to)
}
