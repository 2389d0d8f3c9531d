package smtp

import (
	"context"
	"errors"
	"time"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/credential"
)

const (
	// verifyAfter is how long after its last reply a connection is used without
	// asking the server first.
	verifyAfter = 5 * time.Second
	// verifyLimit is the time allowed for that; another connection is quicker.
	verifyLimit = 10 * time.Second
	quitLimit   = 2 * time.Second
)

// Reserve gives out a connection that is signed in and has just proved to be
// alive. It opens one if none is idle and Config.Connections allows, else it
// waits. While the server can't be reached it fails at once with *DownError;
// when the server only refuses more connections, or to let us in on them, it
// waits for one of those open. After Close it fails with ErrClosed.
func (p *Provider) Reserve(ctx context.Context) (delivery.Slot, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.closing, cancel)()
	for {
		c, err := p.take(ctx)
		if err != nil {
			return nil, p.reserveError(ctx, err)
		}
		if c != nil {
			return &slot{p: p, c: c}, nil
		}
	}
}

// reserveError tells the two reasons apart for which ctx ends.
func (p *Provider) reserveError(ctx context.Context, err error) error {
	switch {
	case p.closing.Err() != nil:
		return ErrClosed
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return err
}

// take is one try of Reserve; without connection or error there is to be another.
func (p *Provider) take(ctx context.Context) (*conn, error) {
	// Closing ends ctx, too, but from another goroutine.
	if err := errors.Join(ctx.Err(), p.closing.Err()); err != nil {
		return nil, err
	}
	select {
	case c := <-p.idle:
		return p.verify(ctx, c), nil
	default:
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case c := <-p.idle:
		return p.verify(ctx, c), nil
	case <-p.permits:
	}
	c, err := p.connect(ctx)
	if err == nil {
		return c, nil
	}
	p.permits <- struct{}{}
	var down *DownError
	if errors.As(err, &down) && p.opened.Load() > 0 && onlyMore(err) {
		return p.await(ctx, down)
	}
	return nil, err
}

// onlyMore says whether a dial failed in a way that tells nothing of connections
// that are open and signed in.
func onlyMore(err error) bool {
	var refusal *Error
	return errors.As(err, &refusal) && refusal.Code < 500 || errors.Is(err, ErrCredentials) || errors.Is(err, credential.ErrNone)
}

// await waits for a connection to be given back, until it makes sense to dial again.
func (p *Provider) await(ctx context.Context, down *DownError) (*conn, error) {
	timer := time.NewTimer(max(down.Until.Sub(p.cfg.Now()), firstPause))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case c := <-p.idle:
		return p.verify(ctx, c), nil
	case <-timer.C:
		return nil, nil
	}
}

// connect dials with a permit in hand.
func (p *Provider) connect(ctx context.Context) (*conn, error) {
	if until, ok, err := p.outage.enter(p.cfg.Now()); !ok {
		return nil, &DownError{p.cfg.Name, until, err}
	}
	c, err := p.dial(ctx)
	if ctx.Err() != nil {
		p.outage.abandon()
		if c != nil {
			c.close()
		}
		return nil, ctx.Err()
	}
	until, began, ended := p.outage.leave(p.cfg.Now(), err)
	switch {
	case began:
		p.cfg.Logger.Warn("smtp relay can't be used", "provider", p.cfg.Name, "error", printable(err.Error()), "next_try", until)
	case ended:
		p.cfg.Logger.Info("smtp relay can be used again", "provider", p.cfg.Name)
	}
	if err != nil {
		return nil, &DownError{p.cfg.Name, until, err}
	}
	p.opened.Add(1)
	return c, nil
}

// verify gives c back when it can take a message, else it ends it.
func (p *Provider) verify(ctx context.Context, c *conn) *conn {
	now := p.cfg.Now()
	switch {
	case !c.quiet():
		p.discard(c)
		return nil
	case now.Sub(c.verified) > p.cfg.IdleTimeout, !c.use.Fit():
		p.retire(c)
		return nil
	case !c.stale && now.Sub(c.verified) < verifyAfter:
		return c
	}
	stop := context.AfterFunc(ctx, c.interrupt)
	_, err := c.expect(verifyLimit, 2, "RSET", "RSET")
	if !stop() || err != nil {
		p.discard(c)
		return nil
	}
	c.stale = false
	c.verified = p.cfg.Now()
	return c
}

// discard ends a connection that is no good, without a word.
func (p *Provider) discard(c *conn) {
	c.close()
	p.opened.Add(-1)
	p.permits <- struct{}{}
}

// retire ends a connection politely, behind the caller's back.
func (p *Provider) retire(c *conn) {
	p.wg.Go(func() {
		c.quit(quitLimit)
		p.opened.Add(-1)
		p.permits <- struct{}{}
	})
}

// sweep ends connections that nobody has used for IdleTimeout.
func (p *Provider) sweep() {
	tick := time.NewTicker(max(p.cfg.IdleTimeout/2, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-p.closing.Done():
			return
		case <-tick.C:
		}
		for range len(p.idle) {
			select {
			case c := <-p.idle:
				if p.cfg.Now().Sub(c.verified) > p.cfg.IdleTimeout {
					p.retire(c)
				} else {
					p.idle <- c
				}
			default:
			}
		}
	}
}
