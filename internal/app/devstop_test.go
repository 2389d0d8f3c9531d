//go:build linux

package app_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDevStopsInTime stops dev while its providers hang and clients submit, and
// then while PostgreSQL stands still besides: each time nothing is left within 10 s.
// And each time what was accepted is delivered after the next start, or in doubt.
func TestDevStopsInTime(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program and runs PostgreSQL")
	}
	d := newDevRun(t)
	d.start()
	d.submit("first-email", false)
	d.submit("first-push", true)
	d.await("both are in the inbox", func() bool { return len(d.inbox()) == 2 })
	hang := func(load string) (l *load, wait func()) {
		t.Helper()
		d.misbehave("smtp", map[string]any{"step": "dot", "do": "hang"})
		d.misbehave("fcm", map[string]any{"step": "body", "do": "hang"})
		l, wait = d.underLoad(load, 200)
		d.await("hand-overs hang", func() bool { return d.sending() >= 20 })
		return l, wait
	}

	l, wait := hang("hang")
	d.stop()
	wait()
	d.startAndAccount(l)

	l, wait = hang("freeze")
	d.freezePostgres()
	d.stopInTime()
	wait()
	d.startAndAccount(l)
	d.stop()
}

// startAndAccount starts dev again, repeats what had no answer, and waits for all.
func (d *devRun) startAndAccount(l *load) {
	d.t.Helper()
	d.start()
	for name, push := range l.unanswered() {
		d.submit(name, push)
	}
	d.account(l)
}

// sending is how many messages are being handed over.
func (d *devRun) sending() int {
	d.t.Helper()
	var audit struct{ Total struct{ Sending int } }
	d.operator("/v1/audit", &audit)
	return audit.Total.Sending
}

// freezePostgres stops every process of dev's PostgreSQL, the first one first.
func (d *devRun) freezePostgres() {
	d.t.Helper()
	b, err := os.ReadFile(filepath.Join(d.dir, "postgres", "data", "postmaster.pid"))
	first, _, _ := strings.Cut(string(b), "\n")
	pid, err2 := strconv.Atoi(first)
	if err := errors.Join(err, err2); err != nil {
		d.t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		d.t.Fatal(err)
	}
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for child := range strings.FieldsSeq(string(children)) {
		if pid, err := strconv.Atoi(child); err == nil {
			_ = syscall.Kill(pid, syscall.SIGSTOP) // it may have ended
		}
	}
}

// stop ends the process as ^C does; within 10 s nothing of it is left, and all was
// in order.
func (d *devRun) stop() {
	d.t.Helper()
	d.stopInTime()
	if code := d.cmd.ProcessState.ExitCode(); code != 0 {
		d.t.Errorf("exit code %d\n%s", code, &d.out)
	}
}

// stopInTime is stop, in order or not.
func (d *devRun) stopInTime() {
	d.t.Helper()
	asked := time.Now()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		d.t.Fatal(err)
	}
	select {
	case <-d.ended:
	case <-time.After(10 * time.Second):
		d.t.Fatalf("it still runs 10 s after SIGTERM:\n%s", &d.out)
	}
	d.t.Logf("stopped in %s", time.Since(asked).Round(time.Millisecond))
	if _, err := os.Stat(filepath.Join(d.dir, "dev.json")); !errors.Is(err, fs.ErrNotExist) {
		d.t.Errorf("dev.json is left (%v)", err)
	}
	if left := processesOf(d.t, d.dir); len(left) > 0 {
		d.t.Errorf("still running:\n%s", strings.Join(left, "\n"))
	}
}

// processesOf lists the processes that were started for dir, or work in it.
func processesOf(t *testing.T, dir string) (found []string) {
	t.Helper()
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil || len(entries) == 0 {
		t.Fatalf("no processes to look at (%v)", err)
	}
	for _, entry := range entries {
		line, _ := os.ReadFile(filepath.Join(entry, "cmdline")) // it may be gone by now
		cwd, _ := os.Readlink(filepath.Join(entry, "cwd"))
		if bytes.Contains(line, []byte(dir)) || strings.HasPrefix(cwd, dir) {
			found = append(found, fmt.Sprintf("%s %s", filepath.Base(entry), bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
		}
	}
	return found
}
