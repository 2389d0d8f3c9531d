package delivery

import (
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// Providers is how each channel's provider is doing in this process.
func (w *Worker) Providers() []message.ProviderHealth {
	all := make([]message.ProviderHealth, len(w.gates))
	for i, g := range w.gates {
		all[i] = g.health()
	}
	return all
}

// passedLately is for how long a provider that a message could not go to counts
// as one that somebody needs.
const passedLately = 30 * time.Second

// health tells of trouble only while somebody needs the provider: without, a
// gate stays closed that nobody tries.
func (g *gate) health() message.ProviderHealth {
	h := message.ProviderHealth{
		Name: g.provider.Name(), Channel: g.provider.Channel(),
		Taken: g.ended[message.Sent].Load(), Deferred: g.ended[message.Deferred].Load(),
		Rejected: g.ended[message.Rejected].Load(), Unknown: g.ended[message.Unknown].Load(),
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, turns := range g.waiting {
		h.Waiting += len(turns)
	}
	if g.state.Load() != gateOpen && (h.Waiting+g.total > 0 || time.Since(g.passed) < passedLately) {
		h.Waiting += g.total // those that are let in to try
		h.Trouble, h.Since = g.trouble.Error(), time.Since(g.shut)
	}
	return h
}
