package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// child is a running server process. The goroutine that starts it stays on its
// own OS thread until the process has been reaped, because the parent-death
// signal (PR_SET_PDEATHSIG) fires when the creating *thread* ends, not the
// process.
type child struct {
	cmd  *exec.Cmd
	log  string        // path of the file that has its output
	done chan struct{} // closed once it has been reaped
	err  error         // how it ended; read after done
}

// startChild starts cmd in a process group of its own, so that a terminal's ^C
// reaches only the parent, which then stops things in order. Output goes to the
// file named log: a pipe would break with the parent. onDeath is sent to the
// process when the parent dies, where the system can do that.
func startChild(cmd *exec.Cmd, log string, onDeath syscall.Signal) (*child, error) {
	out, err := openLog(log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Setpgid = true
	setDeathSignal(cmd.SysProcAttr, onDeath)

	c := &child{cmd: cmd, log: log, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		defer close(c.done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			c.err = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return c, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

func (c *child) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// signal sends sig to the process itself. One that has ended is no error.
func (c *child) signal(sig syscall.Signal) error {
	if err := c.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %v to %d: %w", sig, c.pid(), err)
	}
	return nil
}

// wait waits until the process has been reaped, at most d; it says whether it was.
func (c *child) wait(ctx context.Context, d time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	select {
	case <-c.done:
		return true
	case <-ctx.Done():
		return c.ended()
	}
}

// exitError tells how the process ended, with the last lines that it wrote.
func (c *child) exitError() error {
	<-c.done
	state := "exit status 0"
	if c.err != nil {
		state = c.err.Error()
	}
	return fmt.Errorf("%s ended by itself (%s); the end of %s:\n%s", c.cmd.Path, state, c.log, logTail(c.log))
}
