package devstack

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"
)

// How long each way of stopping may take. A fast shutdown writes a checkpoint;
// after an immediate one the next start recovers from the log instead, which
// loses nothing either.
const (
	pgFast      = 5 * time.Second
	pgImmediate = 2 * time.Second
	killed      = 20 * time.Second
)

// Stop shuts the server down (fast; after 5 s, or when ctx ends, immediate;
// then by SIGKILL) and gives its folder back. It returns when no process of the
// server is left. Stopping again does nothing.
func (p *Postgres) Stop(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lock.f == nil {
		return nil
	}
	defer p.lock.release()
	return p.end(ctx, p.srv)
}

// Kill ends every process of the server by SIGKILL at once, as a crash of the
// machine would, but for the page cache. The folder stays locked for Restart.
func (p *Postgres) Kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.killAll(p.srv)
}

// Restart starts the server again on its port and data, after stopping the one
// that still runs.
func (p *Postgres) Restart(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lock.f == nil {
		return errors.New("restart PostgreSQL: it was stopped for good")
	}
	if err := p.end(ctx, p.srv); err != nil {
		return fmt.Errorf("restart PostgreSQL: %w", err)
	}
	if err := p.start(ctx); err != nil {
		return fmt.Errorf("restart PostgreSQL: %w", err)
	}
	return nil
}

// Signal sends sig to the postmaster and to every process of the server. They
// have no process group in common (each calls setsid), so they are looked for.
// For SIGSTOP the postmaster goes first, and so starts no further one; for
// SIGCONT and SIGSTOP the call is a complete freeze or thaw when it returns.
func (p *Postgres) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.signalAll(p.srv, sig)
}

func (p *Postgres) signalAll(srv *child, sig syscall.Signal) error {
	if err := srv.signal(sig); err != nil {
		return err
	}
	pids, err := serversIn(context.Background(), p.data(), "postgres")
	if err != nil {
		return err
	}
	var others []int
	for _, pid := range pids {
		if pid != srv.pid() {
			others = append(others, pid)
		}
	}
	return signalAll(others, sig)
}

// end stops srv by the steps that Stop tells.
func (p *Postgres) end(ctx context.Context, srv *child) error {
	if !srv.ended() {
		// A stopped process answers no signal but these.
		if err := p.signalAll(srv, syscall.SIGCONT); err != nil {
			return err
		}
		if err := srv.signal(syscall.SIGINT); err != nil {
			return err
		}
		if !srv.wait(ctx, pgFast) {
			p.log.Warn("postgresql doesn't stop in time, stopping it at once", "pid", srv.pid())
			if err := srv.signal(syscall.SIGQUIT); err != nil {
				return err
			}
			srv.wait(context.WithoutCancel(ctx), pgImmediate)
		}
	}
	return p.killAll(srv)
}

// killAll ends what is left of the server. The postmaster is stopped first: it
// would answer the death of a child by starting others.
func (p *Postgres) killAll(srv *child) error {
	ctx := context.Background()
	if err := srv.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	pids, err := serversIn(ctx, p.data(), "postgres")
	if err == nil {
		err = signalAll(pids, syscall.SIGKILL)
	}
	if err = errors.Join(err, srv.signal(syscall.SIGKILL)); err != nil {
		return err
	}
	if !srv.wait(ctx, killed) {
		return fmt.Errorf("PostgreSQL (pid %d) doesn't end", srv.pid())
	}
	gone, err := waitGone(ctx, p.data(), "postgres", killed)
	if err == nil && !gone {
		err = fmt.Errorf("processes of PostgreSQL in %s don't end", p.data())
	}
	return err
}
