package smtp

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/devstack"
)

// daemon is a server's program in the foreground, in a process group of its own,
// in which all of the server's processes are.
type daemon struct {
	name    string
	command []string
	addr    string // where it greets once it is up
	log     string
	errors  string // file for what it prints

	pid   int
	ended chan struct{}
}

// start waits until d greets.
func (d *daemon) start(t *testing.T) {
	t.Helper()
	out, err := os.OpenFile(d.errors, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(d.command[0], d.command[1:]...) //nolint:gosec // a program of the system
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	devstack.DieWithParent(cmd.SysProcAttr)
	d.ended = make(chan struct{})
	started := make(chan error)
	go func() {
		defer close(d.ended)
		runtime.LockOSThread() // see DieWithParent
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // it is stopped by signals
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("start %s: %v", d.name, err)
	}
	d.pid = cmd.Process.Pid
	await(t, d.name+" greets", func() bool {
		select {
		case <-d.ended:
			t.Fatalf("%s ended by itself:\n%s", d.name, d.tail())
		default:
		}
		return d.greets()
	})
}

func (d *daemon) greets() bool {
	nc, err := net.DialTimeout("tcp", d.addr, time.Second)
	if err != nil {
		return false
	}
	defer nc.Close()
	b := make([]byte, 4)
	_ = nc.SetDeadline(time.Now().Add(5 * time.Second))
	_, err = nc.Read(b)
	return err == nil && string(b[:3]) == "220"
}

// stop ends d as systemd does, by SIGTERM to the process that leads it and then
// to what it leaves: Dovecot's login processes stay as long as their clients. Or
// by SIGKILL to all at once. Nothing of it is left when stop returns.
func (d *daemon) stop(t *testing.T, sig syscall.Signal) {
	t.Helper()
	patience := time.After(peerPatience)
	if sig == syscall.SIGTERM {
		if err := syscall.Kill(d.pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Errorf("stop %s: %v", d.name, err)
		}
		select {
		case <-d.ended:
		case <-patience:
		}
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	_ = syscall.Kill(-d.pid, sig) // none of them may be left
	for ended := false; !ended && groupAlive(d.pid); {
		select {
		case <-tick.C:
		case <-patience:
			t.Errorf("%s doesn't end by %v", d.name, sig)
			_ = syscall.Kill(-d.pid, syscall.SIGKILL)
			ended = true
		}
	}
	<-d.ended
	d.pid = 0
}

// groupAlive says whether a process group has members. One that ended and was
// not waited for is none.
func groupAlive(group int) bool {
	if errors.Is(syscall.Kill(-group, 0), syscall.ESRCH) {
		return false
	}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil || len(stats) == 0 {
		return true
	}
	for _, name := range stats {
		b, err := os.ReadFile(name) //nolint:gosec // a process's own
		if err != nil {
			continue // it has gone meanwhile
		}
		// "pid (program) state parent group": proc_pid_stat(5).
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(f) > 2 && f[2] == strconv.Itoa(group) && f[0] != "Z" && f[0] != "X" {
			return true
		}
	}
	return false
}

// tail is the last that d told.
func (d *daemon) tail() string {
	var all []byte
	for _, name := range []string{d.errors, d.log} {
		b, err := os.ReadFile(name)
		if err == nil {
			all = append(all, b...)
		}
	}
	return string(all[max(0, len(all)-6000):])
}

// await polls: the servers tell nobody.
