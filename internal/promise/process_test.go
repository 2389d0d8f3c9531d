//go:build linux

package promise

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/devstack/teststack"
)

// binary builds the program once for all tests.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "stormpost-promise-")
	if err != nil {
		return "", err
	}
	buildDir = dir
	return teststack.Build(dir, "")
})

var buildDir string // removed by TestMain

// process is one `stormpost serve`.
type process struct {
	cmd     *exec.Cmd
	name    string // of its connections to PostgreSQL
	api     string // base URL, empty without the role
	metrics string
	logs    *tail
	done    chan struct{} // closed when it has ended
}

// tail keeps the end of what a process logs.
type tail struct {
	mu    sync.Mutex
	lines []string
}

func (t *tail) add(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, line)
	if len(t.lines) > 200 {
		t.lines = t.lines[100:]
	}
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.lines[max(0, len(t.lines)-40):], "\n")
}

// start starts a process with roles and waits until it is ready.
func (s *stage) start(roles string, extra ...string) *process {
	s.t.Helper()
	p, err := s.tryStart(roles, extra...)
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// started counts the processes.
var started atomic.Int64

// tryStart may be called from any goroutine.
func (s *stage) tryStart(roles string, extra ...string) (*process, error) {
	path, err := binary()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, "serve", "--roles", roles)
	name := fmt.Sprint("promise-", started.Add(1))
	cmd.Env = append(append(append(os.Environ(), s.env...), extra...), "PGAPPNAME="+name, teststack.RaceEnv(buildDir))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, name: name, logs: &tail{}, done: make(chan struct{})}
	ready := make(chan struct{})
	go p.read(out, ready)
	s.keep(p)
	select {
	case <-ready:
		return p, nil
	case <-p.done:
		return nil, fmt.Errorf("serve --roles %s ended:\n%s", roles, p.logs)
	case <-time.After(60 * time.Second):
		return nil, fmt.Errorf("serve --roles %s is not ready:\n%s", roles, p.logs)
	}
}

// read follows the process's log until it ends. The line "ready" says where it
// listens.
func (p *process) read(out io.Reader, ready chan struct{}) {
	scan := bufio.NewScanner(out)
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		p.logs.add(scan.Text())
		var line struct{ Msg, API, Metrics string }
		if json.Unmarshal(scan.Bytes(), &line) == nil && line.Msg == "ready" && ready != nil {
			p.api, p.metrics = line.API, line.Metrics
			close(ready)
			ready = nil
		}
	}
	_ = p.cmd.Wait()
	close(p.done)
}

// owns says whether a TCP connection's end is the process's, as proc(5) tells.
func (p *process) owns(end net.Addr) bool {
	at, ok := end.(*net.TCPAddr)
	if !ok || at.IP.To4() == nil {
		return false
	}
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return false
	}
	ip := at.IP.To4()
	local := fmt.Sprintf("%02X%02X%02X%02X:%04X", ip[3], ip[2], ip[1], ip[0], at.Port)
	fds := fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid)
	open, _ := os.ReadDir(fds)
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 9 && f[1] == local {
			for _, fd := range open {
				if to, err := os.Readlink(filepath.Join(fds, fd.Name())); err == nil && to == "socket:["+f[9]+"]" {
					return true
				}
			}
		}
	}
	return false
}

// kill ends the process by SIGKILL.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

func (p *process) signal(sig syscall.Signal) { _ = p.cmd.Process.Signal(sig) }

// stop ends the process by SIGTERM and says how it went.
func (p *process) stop(ctx context.Context) error {
	p.signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-ctx.Done():
		return fmt.Errorf("SIGTERM: %w\n%s", ctx.Err(), p.logs)
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("SIGTERM: exit code %d\n%s", code, p.logs)
	}
	return nil
}

// slots keeps a process of a kind running in each of its slots, so that a test
// can kill it again and again.
type slot struct {
	s     *stage
	roles string
	extra []string

	mu sync.Mutex
	p  *process
}

func (s *stage) slot(roles string, extra ...string) *slot {
	sl := &slot{s: s, roles: roles, extra: extra}
	sl.p = s.start(roles, extra...)
	return sl
}

func (sl *slot) current() *process {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	return sl.p
}

// replace kills the process and starts another.
func (sl *slot) replace(t *testing.T) {
	t.Helper()
	sl.current().kill()
	sl.restart(t)
}

func (sl *slot) restart(t *testing.T) {
	t.Helper()
	p, err := sl.s.tryStart(sl.roles, sl.extra...)
	if err != nil {
		t.Fatal(err)
	}
	sl.mu.Lock()
	sl.p = p
	sl.mu.Unlock()
}
