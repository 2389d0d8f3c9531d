package drill

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/stormpost/stormpost/internal/devstack"
)

// clockFile, in a server's folder, is by how much its wall clock is turned.
const clockFile = "clock"

// readyLimit bounds the start of a process. None of them waits for a store.
const readyLimit = time.Minute

// server keeps one `stormpost serve` running, under one name and in one folder,
// through kills and starts.
type server struct {
	stage *Stage
	name  string
	roles string
	env   []string // over the stage's

	mu sync.Mutex
	p  *process
}

// process is one life of a server.
type process struct {
	cmd  *exec.Cmd
	api  string        // base URL, empty without the role; set before ready
	done chan struct{} // closed when it has ended
	tail []byte        // the last lines that it wrote; read after done
}

// start starts the server and waits until it is ready.
func (s *server) start(ctx context.Context) error {
	dir := filepath.Join(s.stage.dir, s.name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	cmd := exec.Command(s.stage.opt.Binary, "serve", "--roles", s.roles)
	cmd.Dir, cmd.Env = dir, slices.Concat(s.stage.env, s.env, []string{"STORMPOST_DATA_DIR=" + dir, "STORMPOST_TEST_CLOCK=" + filepath.Join(dir, clockFile)})
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	devstack.DieWithParent(cmd.SysProcAttr)
	out, w, err := os.Pipe()
	if err != nil {
		return errors.Join(err, log.Close())
	}
	cmd.Stdout, cmd.Stderr = w, w
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	err = <-started
	w.Close()
	if err != nil {
		out.Close()
		log.Close()
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	ready := make(chan struct{})
	go p.follow(out, log, ready)
	s.mu.Lock()
	s.p = p
	s.mu.Unlock()
	timer := time.NewTimer(readyLimit)
	defer timer.Stop()
	select {
	case <-ready:
		return nil
	case <-p.done:
		return fmt.Errorf("%s ended: %s", s.name, p.tail)
	case <-timer.C:
		return fmt.Errorf("%s is not ready after %s", s.name, readyLimit)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// follow copies the process's log to its file until it ends. The line "ready"
// says where it listens.
func (p *process) follow(out io.ReadCloser, file io.WriteCloser, ready chan struct{}) {
	defer close(p.done)
	defer out.Close()
	defer file.Close()
	scan := bufio.NewScanner(out)
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		_, _ = fmt.Fprintf(file, "%s\n", scan.Bytes())
		p.tail = append(append(p.tail, scan.Bytes()...), '\n')
		p.tail = p.tail[max(0, len(p.tail)-2000):]
		var line struct{ Msg, API string }
		if ready != nil && bytes.Contains(scan.Bytes(), []byte(`"ready"`)) && json.Unmarshal(scan.Bytes(), &line) == nil && line.Msg == "ready" {
			p.api = line.API
			close(ready)
			ready = nil
		}
	}
}

func (s *server) current() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.p
}

// kill ends the server by SIGKILL.
func (s *server) kill() {
	if p := s.current(); p != nil {
		select {
		case <-p.done: // by itself, which explains nothing
			return
		default:
		}
		from := time.Now()
		_ = p.cmd.Process.Kill()
		<-p.done
		if s.worker() {
			s.stage.died(from)
		}
	}
}

// stop ends the server by SIGTERM, and by SIGKILL after the grace.
func (s *server) stop(grace time.Duration) {
	p := s.current()
	if p == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		s.kill()
	}
}

// command runs another verb of this program to its end, and decodes what it
// answers into out, if that isn't nil.
func (s *Stage) command(ctx context.Context, out any, args ...string) error {
	cmd := exec.CommandContext(ctx, s.opt.Binary, append(args, "--json")...)
	cmd.Env = s.env
	b, err := cmd.Output()
	if err != nil {
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
		}
		return fmt.Errorf("stormpost %s: %w", strings.Join(args, " "), err)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

// cleanEnv is the environment without this program's settings.
func cleanEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "STORMPOST_") {
			env = append(env, kv)
		}
	}
	return env
}
