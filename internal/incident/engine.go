package incident

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	mostOpen   = 100 // causes at a time, pending ones included
	mostRecent = 200 // incidents kept, open ones included
	// updateEvery is how often, at most, sinks are told of new facts.
	updateEvery = time.Minute
	// returnWithin is how soon after its end an incident counts as come back,
	// and longestHold how long it is then held open at most.
	returnWithin = 10 * time.Minute
	longestHold  = 5 * time.Minute
)

// Config is what an engine is made of. The zero Config keeps all in memory.
type Config struct {
	File    string // what a restart goes on with; empty: none
	Runbook string // the runbook's URL, without an anchor
	Now     func() time.Time
	Log     *slog.Logger
}

// Engine holds the incidents. Its methods are safe for concurrent use.
type Engine struct {
	cfg   Config
	tell  []func(Event)
	dirty chan struct{} // the file is behind

	order   sync.Mutex // held by an Observe
	mu      sync.Mutex
	pending map[string]time.Time // cause → since when
	open    map[string]*held
	recent  []Incident // resolved ones, oldest first
	full    bool       // a cause was left out, and that was logged
}

type held struct {
	Incident
	seen time.Time // when its condition was last seen
	told time.Time // when sinks were last told
	news bool      // facts have changed since
}

// New makes an engine with what the file has. A file that can't be read is
// logged and left aside.
func New(cfg Config) *Engine {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	e := &Engine{cfg: cfg, dirty: make(chan struct{}, 1), pending: make(map[string]time.Time), open: make(map[string]*held)}
	if cfg.File == "" {
		return e
	}
	all, err := load(cfg.File)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			cfg.Log.Warn("the incidents' file is not used", "path", cfg.File, "error", err)
		}
		return e
	}
	now := cfg.Now()
	for _, i := range all {
		if i.ResolvedAt != nil {
			e.recent = append(e.recent, i)
		} else if e.open[i.Cause] == nil && len(e.open) < mostOpen {
			e.open[i.Cause] = &held{Incident: i, seen: now, told: now}
		}
	}
	e.trim()
	return e
}

// Tell has fn called with each event, in order. It must not block, and is to be
// given before the first Observe.
func (e *Engine) Tell(fn func(Event)) { e.tell = append(e.tell, fn) }

// Observe takes over what is wrong now. blind are the kinds that nobody could
// look at: what is known of them stays as it is.
func (e *Engine) Observe(conditions []Condition, blind map[Kind]bool) {
	e.order.Lock()
	defer e.order.Unlock()
	events := e.observe(conditions, blind)
	for _, ev := range events {
		for _, fn := range e.tell {
			fn(ev)
		}
	}
	if len(events) > 0 {
		select {
		case e.dirty <- struct{}{}:
		default:
		}
	}
}

func (e *Engine) observe(conditions []Condition, blind map[Kind]bool) (events []Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.cfg.Now()
	seen := make(map[string]bool, len(conditions))
	for i := range conditions {
		c := &conditions[i]
		cause := line(c.Cause(), maxCause)
		if seen[cause] {
			continue
		}
		seen[cause] = true
		if h := e.open[cause]; h != nil {
			h.seen = now
			was := h.worsens(c)
			if h.facts(c) || was != "" {
				h.UpdatedAt, h.news = now.UTC().Round(0), true
			}
			if was != "" || h.news && now.Sub(h.told) >= updateEvery {
				h.told, h.news = now, false
				told := event(Updated, h.Incident)
				told.Was = was
				events = append(events, told)
			}
			continue
		}
		since, known := e.pending[cause]
		if !known {
			if len(e.pending)+len(e.open) >= mostOpen {
				e.leftOut(cause)
				continue
			}
			since = now
			e.pending[cause] = now
		}
		if now.Sub(since) >= kinds[c.Kind].wait {
			delete(e.pending, cause)
			h := e.begin(cause, c, now)
			e.open[cause] = h
			events = append(events, event(Opened, h.Incident))
		}
	}
	for cause := range e.pending {
		if !seen[cause] && !blind[kindOf(cause)] {
			delete(e.pending, cause)
		}
	}
	return append(events, e.resolve(seen, blind, now)...)
}

// resolve ends what has been gone for long enough. The caller holds mu.
func (e *Engine) resolve(seen map[string]bool, blind map[Kind]bool, now time.Time) (events []Event) {
	for cause, h := range e.open {
		switch {
		case seen[cause]:
		case blind[h.Kind]:
			h.seen = now // nobody has seen that it is gone
		case now.Sub(h.seen) >= h.hold():
			delete(e.open, cause)
			h.ResolvedAt = new(now.UTC().Round(0))
			h.UpdatedAt = *h.ResolvedAt
			e.recent = append(e.recent, h.Incident)
			events = append(events, event(Resolved, h.Incident))
		}
	}
	e.trim()
	if len(e.open) == 0 {
		e.full = false
	}
	return events
}

// hold is how long the condition must be gone. It doubles with each return.
func (h *held) hold() time.Duration {
	base := kinds[h.Kind].hold
	return min(base<<min(h.Returns, 10), max(base, longestHold))
}

// worsens takes over that c is critical, where it wasn't, and answers what it was.
// It stays so until it is over: whoever came for it should not be sent away.
func (h *held) worsens(c *Condition) (was Severity) {
	if h.Severity == Critical || c.severity() != Critical {
		return ""
	}
	was, h.Severity = h.Severity, Critical
	return was
}

func (e *Engine) begin(cause string, c *Condition, now time.Time) *held {
	n := kinds[c.Kind]
	i := Incident{
		ID: "inc_" + strings.ToLower(rand.Text()), Cause: cause, Kind: c.Kind, Severity: c.severity(), Command: n.command,
		Runbook: e.cfg.Runbook + "#" + n.runbook, OpenedAt: now.UTC().Round(0), UpdatedAt: now.UTC().Round(0),
	}
	i.facts(c)
	for _, last := range slices.Backward(e.recent) {
		if last.Cause == cause {
			if now.Sub(*last.ResolvedAt) < returnWithin {
				i.Returns = last.Returns + 1
			}
			break
		}
	}
	return &held{Incident: i, seen: now, told: now}
}

// leftOut logs, once, that there are too many causes. The caller holds mu.
func (e *Engine) leftOut(cause string) {
	if !e.full {
		e.full = true
		e.cfg.Log.Warn("too many incidents at a time; further ones are left out", "cause", cause, "open", len(e.open))
	}
}

func (e *Engine) trim() {
	if n := len(e.recent) + len(e.open) - mostRecent; n > 0 {
		e.recent = slices.Delete(e.recent, 0, min(n, len(e.recent)))
	}
}

// Open are the open incidents, newest first.
func (e *Engine) Open() []Incident {
	e.mu.Lock()
	defer e.mu.Unlock()
	return sorted(e.all(func(i *Incident) bool { return i.ResolvedAt == nil }))
}

// Since is when the first of the incidents opened that hold messages up, or that
// did until after resolved; zero when there is none.
func (e *Engine) Since(resolved time.Time) (first time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	see := func(i *Incident) {
		if !kinds[i.Kind].holdsUp || i.ResolvedAt != nil && i.ResolvedAt.Before(resolved) {
			return
		}
		if first.IsZero() || i.OpenedAt.Before(first) {
			first = i.OpenedAt
		}
	}
	for i := range e.recent {
		see(&e.recent[i])
	}
	for _, h := range e.open {
		see(&h.Incident)
	}
	return first
}

// Run keeps the file up to date until ctx ends.
func (e *Engine) Run(ctx context.Context) {
	if e.cfg.File == "" {
		return
	}
	failing := false
	save := func() {
		e.mu.Lock()
		all := e.all(func(*Incident) bool { return true })
		e.mu.Unlock()
		err := store(e.cfg.File, all)
		if err != nil && !failing {
			e.cfg.Log.Warn("incidents are not saved; a restart would begin without them", "error", err)
		}
		failing = err != nil
	}
	for {
		select {
		case <-e.dirty:
			save()
		case <-ctx.Done():
			save() // with the latest facts
			return
		}
	}
}

// all are those that want says yes to, resolved ones first. The caller holds mu.
func (e *Engine) all(want func(*Incident) bool) []Incident {
	var out []Incident
	for i := range e.recent {
		if want(&e.recent[i]) {
			out = append(out, e.recent[i])
		}
	}
	for _, h := range e.open {
		if want(&h.Incident) {
			out = append(out, h.Incident)
		}
	}
	return out
}

func event(c Change, i Incident) Event {
	return Event{ID: "evt_" + strings.ToLower(rand.Text()), Change: c, Incident: i}
}

func kindOf(cause string) Kind {
	kind, _, _ := strings.Cut(cause, "/")
	return Kind(kind)
}
