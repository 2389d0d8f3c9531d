package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInUse is wrapped by what a start returns when another living process runs
// a server in the same folder.
var ErrInUse = errors.New("the folder is in use by another process")

// folderLock is an advisory lock on a file that ends with the process holding
// it, however that ends. Children don't inherit it: Go opens files close-on-exec.
type folderLock struct{ f *os.File }

// LockFolder is for a folder that has no server in it: it fails at once with
// ErrInUse when another living process has it.
func LockFolder(dir string) (release func(), err error) {
	l, err := lockFolder(dir)
	if err != nil {
		return nil, err
	}
	return l.release, nil
}

// lockFolder takes dir's lock, or fails at once with ErrInUse.
func lockFolder(dir string) (*folderLock, error) {
	path := filepath.Join(dir, "lock")
	l, err := tryLock(path)
	if errors.Is(err, ErrInUse) {
		if pid, _ := os.ReadFile(path); len(pid) > 0 {
			return nil, fmt.Errorf("lock %s: %w (pid %s)", dir, ErrInUse, strings.TrimSpace(string(pid)))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return l, nil
}

// waitLock takes the lock on path, and waits until ctx ends while another has
// it. flock itself can't be given a deadline, hence the polling.
func waitLock(ctx context.Context, path string) (*folderLock, error) {
	poll := time.NewTicker(100 * time.Millisecond)
	defer poll.Stop()
	for {
		l, err := tryLock(path)
		if !errors.Is(err, ErrInUse) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the lock %s: %w", path, ctx.Err())
		case <-poll.C:
		}
	}
}

func tryLock(path string) (*folderLock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrInUse
		}
		return nil, err
	}
	// The holder's pid is for people: nothing is decided by it.
	if err := f.Truncate(0); err == nil {
		fmt.Fprintln(f, os.Getpid())
	}
	return &folderLock{f}, nil
}

// release gives the lock back; the file stays, since removing it would let two
// processes lock two files of one name.
func (l *folderLock) release() {
	if l != nil && l.f != nil {
		l.f.Close()
		l.f = nil
	}
}
