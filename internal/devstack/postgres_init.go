package devstack

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/stormpost/stormpost/internal/atomicfile"
)

// prepare brings the folder to where a server can be started in it.
func (p *Postgres) prepare(ctx context.Context) error {
	version, err := os.ReadFile(filepath.Join(p.data(), "PG_VERSION"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the cluster's version: %w", err)
	}
	major := strings.TrimSpace(string(version))
	if p.bin, err = findPostgres(major); errors.Is(err, ErrNoPostgres) && p.fetch {
		var fetchErr error
		cache := ""
		if os.Geteuid() == 0 { // whom it is run as may not enter root's
			cache = p.dir
		}
		if p.bin, fetchErr = fetchPostgres(ctx, cache, major, p.log); fetchErr != nil {
			return fmt.Errorf("%w; nor could they be fetched: %w", err, fetchErr)
		}
		err = nil
	}
	if err != nil {
		return err
	}
	if p.account, err = serverAccount(ctx, p.bin, p.data()); err != nil {
		return err
	}
	if err := p.account.reach(p.dir); err != nil {
		return err
	}
	if p.password, err = keptText(filepath.Join(p.dir, "password"), rand.Text); err != nil {
		return fmt.Errorf("the superuser's password: %w", err)
	}
	if version == nil {
		return p.initdb(ctx)
	}
	if err := endServers(ctx, p.data(), "postgres", []step{
		{syscall.SIGINT, p.postmaster, 15 * time.Second}, // fast shutdown
		{syscall.SIGQUIT, nil, 5 * time.Second},          // immediate shutdown
		{syscall.SIGKILL, nil, 5 * time.Second},
	}); err != nil {
		return err
	}
	return p.forgetStranger()
}

// forgetStranger removes a postmaster.pid whose number belongs to some other
// process by now, as after a reboot or in a container. PostgreSQL would take
// that one for a server and refuse to start. No server works in the folder: the
// lock is held, and those that were found have ended. A file whose process is
// gone is left to PostgreSQL, which also checks the shared memory it names.
func (p *Postgres) forgetStranger() error {
	pid := p.recordedPid()
	if pid <= 0 || syscall.Kill(pid, 0) != nil {
		return nil
	}
	p.log.Warn("postmaster.pid names a process that is no server of this folder, removing it", "pid", pid, "dir", p.dir)
	if err := os.Remove(filepath.Join(p.data(), "postmaster.pid")); err != nil {
		return fmt.Errorf("remove a stale postmaster.pid: %w", err)
	}
	return nil
}

// recordedPid is the number in postmaster.pid, 0 if there is none.
func (p *Postgres) recordedPid() int {
	b, err := os.ReadFile(filepath.Join(p.data(), "postmaster.pid"))
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(b), "\n")
	pid, _ := strconv.Atoi(line) // nonsense is 0
	return pid
}

// postmaster is the one of pids that the data folder names as the head of the
// server. The others follow it, and by themselves when it is gone.
func (p *Postgres) postmaster(pids []int) []int {
	if pid := p.recordedPid(); slices.Contains(pids, pid) {
		return []int{pid}
	}
	return nil
}

// initdb makes the cluster in a folder beside its place and moves it there when
// complete, so that a kill in the middle leaves nothing that looks like one.
func (p *Postgres) initdb(ctx context.Context) error {
	fresh := p.data() + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return fmt.Errorf("clear an unfinished cluster: %w", err)
	}
	if err := p.hand(p.dir, filepath.Join(p.dir, "password")); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, pgReady)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(p.bin, "initdb"), "-D", fresh, "-U", pgUser,
		"--pwfile", filepath.Join(p.dir, "password"), "--auth=scram-sha-256",
		"--encoding=UTF8", "--locale=C", "--data-checksums")
	cmd.Env = pgEnv()
	cmd.Dir = p.dir
	cmd.SysProcAttr = p.account.attr()
	cmd.SysProcAttr.Setpgid = true // away from the terminal's ^C, like the server
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, bytes.TrimSpace(out.Bytes()))
	}
	if err := os.Rename(fresh, p.data()); err != nil {
		return fmt.Errorf("put the cluster in its place: %w", err)
	}
	p.log.Info("postgresql cluster made", "dir", p.dir)
	return atomicfile.SyncDir(p.dir)
}

// hand gives paths to the user as whom the server runs.
func (p *Postgres) hand(paths ...string) error {
	if p.account.uid == os.Geteuid() {
		return nil
	}
	for _, path := range paths {
		if err := os.Chown(path, p.account.uid, p.account.gid); err != nil {
			return fmt.Errorf("hand over to the server's user: %w", err)
		}
	}
	return nil
}

// pgEnv is the environment without what would steer PostgreSQL's programs.
func pgEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "PG") || strings.HasPrefix(kv, "LC_") || strings.HasPrefix(kv, "LANG")
	})
}
