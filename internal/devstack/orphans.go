package devstack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"

	"github.com/shirou/gopsutil/v4/process"
)

// serversIn lists the processes of the program exe whose working folder is
// dir: PostgreSQL's processes all work in their data folder, and Kafka is
// started in its node's. Processes that can't be looked into are others' own.
func serversIn(ctx context.Context, dir, exe string) ([]int, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find servers: %w", err)
	}
	procs, err := process.ProcessesWithContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, p := range procs {
		cwd, err := p.CwdWithContext(ctx)
		if err != nil || cwd != dir {
			continue
		}
		if name, err := p.NameWithContext(ctx); err == nil && name == exe {
			pids = append(pids, int(p.Pid))
		}
	}
	return pids, nil
}

// step is one stage of ending processes: a signal to those chosen of the ones
// still there, then up to wait for all to be gone.
type step struct {
	sig  syscall.Signal
	to   func(pids []int) []int // nil is everybody
	wait time.Duration
}

// endServers ends the processes that a dead parent left in dir, gently first.
// They are not children, so their end is polled for.
func endServers(ctx context.Context, dir, exe string, steps []step) error {
	for _, s := range steps {
		pids, err := serversIn(ctx, dir, exe)
		if err != nil || len(pids) == 0 {
			return err
		}
		to := pids
		if s.to != nil {
			to = s.to(pids)
		}
		if err := signalAll(pids, syscall.SIGCONT); err != nil {
			return err
		}
		if err := signalAll(to, s.sig); err != nil {
			return err
		}
		if gone, err := waitGone(ctx, dir, exe, s.wait); gone || err != nil {
			return err
		}
	}
	return fmt.Errorf("a %s that an earlier run left in %s doesn't end", exe, dir)
}

func waitGone(ctx context.Context, dir, exe string, limit time.Duration) (bool, error) {
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	for {
		pids, err := serversIn(ctx, dir, exe)
		if err != nil || len(pids) == 0 {
			return err == nil, err
		}
		select {
		case <-poll.C:
		case <-deadline.C:
			return false, nil
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// signalAll sends sig to each; those that are gone don't count.
func signalAll(pids []int, sig syscall.Signal) error {
	var errs []error
	for _, pid := range pids {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, fmt.Errorf("send %v to %d: %w", sig, pid, err))
		}
	}
	return errors.Join(errs...)
}
