package credential

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
)

var (
	errClosed  = errors.New("is closed")
	errRefused = errors.New("the service refuses what there is")
	// ErrNone is in the error of Use when there is nothing usable.
	ErrNone = errors.New("no working credential")
)

// Config says what a Credential is. Name and Source are required.
type Config struct {
	Name   string // in the configuration, incidents and logs
	Source Source
	// Check says why a value can't be one, without showing it. Nil: any can.
	Check func(value string) error
	// Safe is where the last generation that a service accepted outlives the
	// process, if the source may be away when the next one starts. Nil: nowhere.
	Safe   *Safe
	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default: discards
}

// Credential is one named credential and its generations. It is safe for
// concurrent use.
type Credential struct {
	cfg  Config
	life context.Context // ends with Close
	end  context.CancelFunc
	wg   sync.WaitGroup
	wake chan struct{} // the loop looks at when to refresh

	// A follower's mutex may be locked while this one is held, never the other
	// way round.
	mu         sync.Mutex
	followers  []*Credential
	provers    []func(context.Context) error
	all        []*generation // newest first
	numbered   int
	current    *generation // that proved itself last, while it may be used; else nil
	due        time.Time   // when to refresh; zero: only when needed
	fetch      *fetch      // under way, or nil
	failures   int         // of the source, in a row
	pauseTo    time.Time   // no fetch before
	failure    error       // of the last fetch, or nil
	asked      bool        // the source, since the current one was rejected
	useless    int         // generations in a row that were of no use
	refused    string      // why the source's newest is not used, or empty
	fetched    time.Time   // last success
	lastUse    time.Time
	lastOK     time.Time
	fetches    int64
	failed     int64 // of fetches
	rejects    int64
	fallbacks  int64
	unkept     *generation // to be written to the safe, or nil
	keepFailed bool        // the last time
}

// fetch is one request to the source. err is set before done is closed.
type fetch struct {
	done chan struct{}
	err  error
}

// New makes a credential, which begins to ask its source. Close must be called.
func New(cfg Config) *Credential {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Credential{cfg: cfg, wake: make(chan struct{}, 1)}
	c.life, c.end = context.WithCancel(context.Background())
	c.due = cfg.Now()
	c.restore(c.due)
	if s, ok := cfg.Source.(interface{ follows() []*Credential }); ok {
		for _, key := range s.follows() {
			key.follow(c)
		}
	}
	c.wg.Go(c.loop)
	return c
}

// follow has f refreshed when c has a new generation, of which f's are made.
func (c *Credential) follow(f *Credential) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.followers = append(c.followers, f)
}

// ProveBy has f sign in, and hand nothing over, whenever a new generation comes
// while another works: so it is known whether it is any good before a hand-over
// needs it, or although none does. f takes the generation by Use as everyone
// does; it must be done when its context ends.
func (c *Credential) ProveBy(f func(context.Context) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.provers = append(c.provers, f)
}

// Name is Config.Name.
func (c *Credential) Name() string { return c.cfg.Name }

// String is the name.
func (c *Credential) String() string { return c.cfg.Name }

// GoString is the name, so that %#v shows no more.
func (c *Credential) GoString() string { return c.cfg.Name }

// LogValue is the name.
func (c *Credential) LogValue() slog.Value { return slog.StringValue(c.cfg.Name) }

// Close ends a request under way and waits for it. Calling it again does
// nothing more.
func (c *Credential) Close() {
	c.mu.Lock() // so that begin starts nothing after it
	c.end()
	c.mu.Unlock()
	c.wg.Wait()
}

// Use is a generation to show to the service, now. It waits for one if there is
// none, and returns ctx.Err() when ctx ends first. The caller then says
// Accepted or Rejected, or neither when it never came to that.
func (c *Credential) Use(ctx context.Context) (Use, error) {
	for range 3 {
		c.mu.Lock()
		now := c.cfg.Now()
		if u, ok := c.pick(now); ok {
			c.lastUse = now
			c.mu.Unlock()
			return u, nil
		}
		f, err := c.begin(now)
		c.mu.Unlock()
		if err != nil {
			return Use{}, c.none(err)
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return Use{}, ctx.Err()
		}
		if f.err != nil {
			if u, ok := c.left(); ok {
				return u, nil
			}
			return Use{}, c.none(f.err)
		}
	}
	return Use{}, c.none(errRefused)
}

// left is what may be used although the source has just failed.
func (c *Credential) left() (Use, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.cfg.Now()
	u, ok := c.pick(now)
	if ok {
		c.lastUse = now
	}
	return u, ok
}

func (c *Credential) none(err error) error {
	c.mu.Lock()
	why := c.refused
	c.mu.Unlock()
	if why != "" && errors.Is(err, errRefused) {
		return fmt.Errorf("credential %s: %w: %s", c.cfg.Name, ErrNone, why)
	}
	return fmt.Errorf("credential %s: %w: %w", c.cfg.Name, ErrNone, err)
}

// Use is the right to show one generation to the service. The zero Use has no
// value.
type Use struct {
	c     *Credential
	g     *generation
	epoch int // g.epoch when it was given out
}

// Value is the secret. Never log it.
func (u Use) Value() string {
	if u.g == nil {
		return ""
	}
	return u.g.Value.Reveal()
}

// Generation numbers the credential's generations in this process from 1 on.
func (u Use) Generation() int {
	if u.g == nil {
		return 0
	}
	u.c.mu.Lock() // it has another number when the source goes back to it
	defer u.c.mu.Unlock()
	return u.g.number
}

// Fit says whether what was opened with the generation, such as a connection, may
// go on: it is neither expired nor rejected, or there is nothing better to open
// another one with.
func (u Use) Fit() bool {
	if u.g == nil {
		return true
	}
	u.c.mu.Lock()
	defer u.c.mu.Unlock()
	now := u.c.cfg.Now()
	return u.g.usable(now) || !slices.ContainsFunc(u.c.all, func(g *generation) bool { return g.usable(now) })
}

// Ends tells when the generation ends, as the service has it; zero: nobody knows.
// People are warned ahead of that. It is used until the service refuses it all the
// same: somebody else may renew it.
func (u Use) Ends(at time.Time) {
	if u.g == nil {
		return
	}
	u.c.mu.Lock()
	defer u.c.mu.Unlock()
	if at.Sub(u.g.told) < endsWithin { // as told before, or by one who knows less
		return
	}
	u.g.told, u.g.renewed = at, u.c.cfg.Now()
}

// endsWithin is how exact what services say of an end is: they count whole
// seconds, from some moment of the request.
const endsWithin = 2 * time.Second

// String names the generation, and shows nothing of it.
func (u Use) String() string {
	if u.g == nil {
		return "no credential"
	}
	return fmt.Sprintf("%s generation %d", u.c.cfg.Name, u.Generation())
}

// GoString is String.
func (u Use) GoString() string { return u.String() }

// LogValue is String.
func (u Use) LogValue() slog.Value { return slog.StringValue(u.String()) }

// of is what u's generation was made of, if the news of it is news of that, too:
// the first since its source gave it, and not of an earlier time. It is passed on
// without c.mu, see followers.
func (u Use) of() Use {
	u.c.mu.Lock()
	defer u.c.mu.Unlock()
	if u.epoch != u.g.epoch {
		return Use{}
	}
	return u.g.of
}

// Accepted tells that the service let us in.
func (u Use) Accepted() {
	if u.g == nil {
		return
	}
	u.of().Accepted()
	c, g := u.c, u.g
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.cfg.Now()
	c.lastOK, g.accepted = now, now
	if u.epoch != g.epoch {
		return // late news from before a rejection
	}
	g.of = Use{}
	if c.current == g {
		return // as it was
	}
	if !g.rejected.IsZero() {
		c.cfg.Logger.Info("credential is taken again", "credential", c.cfg.Name, "generation", g.number)
	}
	g.proven, g.canary, g.rejected, g.why = true, time.Time{}, time.Time{}, ""
	if c.current != nil && c.current.usable(now) && (g.older || g.number < c.current.number) {
		return
	}
	c.cfg.Logger.Info("credential is used from now on", "credential", c.cfg.Name, "generation", g.number, "label", g.Label, "expires", g.Expires)
	c.current, c.useless, g.rejections, g.older = g, 0, 0, false
	c.toKeep(g)
	if c.all[0] == g {
		c.refused = ""
	}
}

// Rejected tells that the service refused the generation: 401, 535. why is what
// it said, for people. The generation is not handed out again, unless there is
// nothing else for a while.
func (u Use) Rejected(why string) {
	if u.g == nil {
		return
	}
	of := u.of()
	of.Rejected(why) // first, so that the refresh is by what is left
	c, g := u.c, u.g
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rejects++
	if u.epoch != g.epoch {
		return // others said so already
	}
	now := c.cfg.Now()
	g.of = Use{}
	g.epoch++
	g.rejections++
	g.rejected, g.canary, g.why = now, time.Time{}, clean(why, g.Value.Reveal())
	// The second pause is as the first, which rejectOnce may take the place of.
	g.retryAt = now.Add(jitter(min(rejectMin<<min(max(g.rejections-2, 0), 10), rejectMax)))
	c.cfg.Logger.Warn("credential was refused by the service", "credential", c.cfg.Name, "generation", g.number, "label", g.Label, "reply", g.why)
	if c.all[0] == g {
		c.notUsed("the service refuses the newest one: " + g.why)
	}
	switch {
	case g == c.current:
		c.current, c.asked = nil, false
		c.refreshNow(now)
	case c.current != nil:
		// A canary failed; all others go on. But what refreshes them must not be of
		// the same make.
		if of.g != nil {
			c.refreshNow(now)
		}
	case c.useless == 0:
		c.useless, c.asked = 1, false
		c.refreshNow(now)
	default:
		// What came after a rejection was rejected, too: another new one may be
		// as useless, so it can wait a little.
		c.uselessFor(now, errRefused)
	}
}

// notUsed notes why the source's newest is not what is used. c.mu is held.
func (c *Credential) notUsed(why string) {
	if c.refused == "" {
		c.fallbacks++
	}
	c.refused = why
}

// refreshNow has the source asked as soon as that may be. c.mu is held.
func (c *Credential) refreshNow(now time.Time) {
	c.due = now
	c.nudge()
}

// uselessFor makes a pause, since what the source has is of no use. c.mu is held.
func (c *Credential) uselessFor(now time.Time, err error) {
	pause := jitter(min(retryMin<<min(c.useless, 10), rejectMin))
	c.useless++
	if until := now.Add(pause); until.After(c.pauseTo) {
		c.pauseTo, c.failure = until, err
	}
	if c.due.IsZero() || c.due.After(c.pauseTo) {
		c.due = c.pauseTo
	}
	c.nudge()
}

// clean is one line of at most 200 bytes for people, without secret.
func clean(s, secret string) string {
	if secret != "" {
		s = strings.ReplaceAll(s, secret, "[secret]")
	}
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "")
	}
	return strings.TrimSpace(s)
}

// pick chooses a generation. c.mu is held.
func (c *Credential) pick(now time.Time) (Use, bool) {
	if c.current != nil && !c.current.usable(now) {
		c.current = nil
	}
	candidate := c.candidate(now)
	switch {
	case candidate != nil && (c.current == nil || candidate.mayTry(now)):
		candidate.canary = now
		return c.use(candidate, now), true
	case c.current != nil:
		return c.use(c.current, now), true
	}
	// A refresh that a rejection called for decides; after it, or while there can't
	// be one, a spare is better than nothing.
	if c.asked || now.Before(c.pauseTo) {
		if g := c.spare(now); g != nil {
			return c.use(g, now), true
		}
	}
	return Use{}, false
}

func (c *Credential) use(g *generation, now time.Time) Use {
	g.shown = now
	return Use{c, g, g.epoch}
}

// candidate is the newest generation that has not proved itself. c.mu is held.
func (c *Credential) candidate(now time.Time) *generation {
	for _, g := range c.all {
		if g == c.current || g.proven {
			return nil
		}
		if g.usable(now) && !g.older {
			return g
		}
		if g == c.all[0] && c.current != nil && !g.rejected.IsZero() && g.fit(now) && !g.older && now.After(g.retryAt) {
			return g // the service may have learned of it since
		}
	}
	return nil
}

// spare is what is left when neither a current one nor a candidate is: proven
// ones first, then older ones, then one that was rejected a while ago, which
// one user at a time may try again. c.mu is held.
func (c *Credential) spare(now time.Time) *generation {
	best := func(ok func(*generation) bool) *generation {
		if i := slices.IndexFunc(c.all, ok); i >= 0 {
			return c.all[i]
		}
		return nil
	}
	if g := best(func(g *generation) bool { return g.usable(now) && g.proven }); g != nil {
		return g
	}
	if g := best(func(g *generation) bool { return g.usable(now) }); g != nil {
		return g
	}
	g := best(func(g *generation) bool {
		return g.fit(now) && !g.rejected.IsZero() && !now.Before(g.retryAt) && g.mayTry(now)
	})
	if g != nil {
		g.canary = now
	}
	return g
}
