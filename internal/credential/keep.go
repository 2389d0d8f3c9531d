package credential

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"time"
)

// remote is a Source that may be away when a process starts, so that what it gave
// is worth keeping.
type remote interface {
	// identity says what its generations are of, and for whom: what is kept of one
	// is of no use to another.
	identity() string
}

// kept is a generation in a Safe: the last that a service accepted.
type kept struct {
	Value     string    `json:"value"`
	Label     string    `json:"label"`
	NotBefore time.Time `json:"not_before"`
	Expires   time.Time `json:"expires"`
	Issued    time.Time `json:"issued"`
	Got       time.Time `json:"got"`
}

func (k *kept) generation() *generation {
	return &generation{got: k.Got, Material: Material{Value: Secret(k.Value), Label: k.Label, NotBefore: k.NotBefore, Expires: k.Expires, Issued: k.Issued}}
}

const keepWait = 2 * time.Second

// keeps says whether and where generations are kept.
func (c *Credential) keeps() (slot, bool) {
	s, ok := c.cfg.Source.(remote)
	if c.cfg.Safe == nil || !ok {
		return slot{}, false
	}
	return slot{c.cfg.Safe, c.cfg.Name, "generation", s.identity()}, true
}

// restore takes what an earlier process has kept: as a spare, for when the source
// has nothing that works.
func (c *Credential) restore(now time.Time) {
	place, ok := c.keeps()
	if !ok {
		return
	}
	var k kept
	err := place.load(&k)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	g := k.generation()
	switch {
	case err != nil:
	case k.Value == "":
		err = errors.New("it is empty")
	case !g.Expires.IsZero() && !now.Before(g.Expires):
		err = errors.New("it expired at " + g.Expires.UTC().Format(time.RFC3339))
	case c.cfg.Check != nil:
		if err = c.cfg.Check(k.Value); err != nil {
			err = errors.New("it can't be used: " + clean(err.Error(), k.Value))
		}
	}
	if err != nil {
		c.cfg.Logger.Warn("credential's kept generation is not used", "credential", c.cfg.Name, "folder", c.cfg.Safe.String(), "reason", err)
		return
	}
	c.numbered++
	g.number, g.kept, g.proven = c.numbered, true, true
	c.all = []*generation{g}
	c.cfg.Logger.Info("credential has a kept generation, should its source be away", "credential", c.cfg.Name, "label", g.Label, "expires", g.Expires)
}

// confirm notes that the source has g's value, too, and as m says. c.mu is held.
func (c *Credential) confirm(g *generation, m Material) {
	g.of = m.of
	longer := m.Expires.After(g.Expires) && !g.Expires.IsZero() || m.Expires.IsZero() && !g.Expires.IsZero()
	if !g.kept && !longer {
		return
	}
	if longer {
		g.Expires, g.renewed = m.Expires, c.cfg.Now() // a lease that was renewed
	}
	if g.kept {
		g.kept, g.Label = false, m.Label
		if g != c.current {
			g.proven = false // as any that the source gives
		}
	}
	if g == c.current {
		c.toKeep(g)
	}
}

// toKeep has the loop keep g. c.mu is held.
func (c *Credential) toKeep(g *generation) {
	if _, ok := c.keeps(); ok && !g.kept {
		c.unkept = g
		c.nudge()
	}
}

// keep writes what toKeep was told of. It is called by the loop alone.
func (c *Credential) keep() {
	c.mu.Lock()
	g := c.unkept
	if g == nil {
		c.mu.Unlock()
		return
	}
	c.unkept = nil
	mine := kept{g.Value.Reveal(), g.Label, g.NotBefore, g.Expires, g.Issued, g.got}
	var refused []Secret
	for _, o := range c.all {
		if !o.rejected.IsZero() {
			refused = append(refused, o.Value)
		}
	}
	c.mu.Unlock()

	err := c.write(mine, refused)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.keepFailed = false
		return
	}
	if !c.keepFailed {
		c.cfg.Logger.Warn("credential's last good generation can't be kept", "credential", c.cfg.Name, "folder", c.cfg.Safe.String(), "error", err)
	}
	c.keepFailed = true
	if c.unkept == nil {
		c.unkept = g // when the loop comes by again
	}
}

// write keeps mine, unless another process has kept a newer one that isn't known
// to be refused.
func (c *Credential) write(mine kept, refused []Secret) error {
	place, _ := c.keeps()
	ctx, cancel := context.WithTimeout(context.Background(), keepWait)
	defer cancel()
	unlock, err := place.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	var theirs kept
	if place.load(&theirs) == nil && !slices.Contains(refused, Secret(theirs.Value)) {
		g := theirs.generation()
		if theirs.Value == mine.Value && theirs.Expires.Equal(mine.Expires) || g.fit(c.cfg.Now()) && mine.generation().before(g) {
			return nil
		}
	}
	return place.save(mine)
}
