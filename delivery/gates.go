package delivery

import (
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// gates are those of one channel, one for each provider that any of its
// messages may go to.
type gates struct {
	all       []*gate
	platforms map[string]*gate // of pushes
	rest      *gate            // for everything else
}

// newGates makes a gate for each route that is the first for something, or named
// in an order.
func newGates(channel message.Channel, routes []Route, orders []Order, log *slog.Logger) (*gates, error) {
	g := &gates{platforms: make(map[string]*gate)}
	for _, r := range append(slices.Clone(routes), Route{Provider: nowhere{channel}}) {
		if r.Provider.Channel() != channel || r.Slots < 0 || !(r.Rate >= 0) {
			return nil, fmt.Errorf("delivery: provider %s can't serve %s with %d slots, %v a second", r.Provider.Name(), channel, r.Slots, r.Rate)
		}
		var made *gate
		if slices.ContainsFunc(orders, func(o Order) bool { return o.Channel == channel && slices.Contains(o.Providers, r.Provider.Name()) }) {
			made = newGate(r, log)
		}
		for _, platform := range r.Platforms {
			if g.platforms[platform] == nil && g.rest == nil {
				if made == nil {
					made = newGate(r, log)
				}
				g.platforms[platform] = made
			}
		}
		if len(r.Platforms) == 0 && g.rest == nil {
			if made == nil {
				made = newGate(r, log)
			}
			g.rest = made
		}
		if made != nil {
			g.all = append(g.all, made)
		}
	}
	return g, nil
}

// of is the gate that content goes through. Content that nobody can read goes
// through none of them, and gets the last.
func (g *gates) of(content *message.Content) *gate {
	if content != nil && content.Push != nil {
		if gate := g.platforms[content.Push.Platform]; gate != nil {
			return gate
		}
	}
	return g.rest
}

func (g *gates) names() (all []string) {
	for _, gate := range g.all {
		all = append(all, gate.provider.Name())
	}
	return all
}

// replyLimit is the longest of all.
func (g *gates) replyLimit() (d time.Duration) {
	for _, gate := range g.all {
		d = max(d, gate.provider.ReplyLimit())
	}
	return d
}
