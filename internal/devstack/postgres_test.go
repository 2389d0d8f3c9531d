package devstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

var discard = slog.New(slog.DiscardHandler)

// small makes the many servers of these tests light.
var small = map[string]string{"shared_buffers": "16MB", "max_connections": "20"}

func startPostgres(t *testing.T, dir string) *Postgres {
	t.Helper()
	p, err := StartPostgres(testContext(t), PostgresConfig{Dir: dir, Settings: small})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		noServers(t, p.data(), "postgres")
	})
	return p
}

func query(t *testing.T, dsn, sql string) string {
	t.Helper()
	ctx := testContext(t)
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	var s string
	if err := conn.QueryRow(ctx, sql).Scan(&s); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return s
}

const insert = `WITH t AS (INSERT INTO kept VALUES ('row') RETURNING a) SELECT a FROM t`

func makeTable(t *testing.T, dsn string) {
	t.Helper()
	ctx := testContext(t)
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, `CREATE TABLE kept (a text)`); err != nil {
		t.Fatal(err)
	}
	query(t, dsn, insert)
}

func rows(t *testing.T, dsn string) string {
	t.Helper()
	return query(t, dsn, `SELECT count(*)::text FROM kept`)
}

func TestPostgresKeepsItsData(t *testing.T) {
	// TempDir lies under a 0700 parent, which stops a server that runs as
	// another user; in root's user namespace it must not.
	dir := filepath.Join(t.TempDir(), "private")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(dir, "pg")
	p := startPostgres(t, dir)
	for setting, want := range map[string]string{
		"fsync": "on", "synchronous_commit": "on", "server_encoding": "UTF8", "lc_collate": "C",
		"data_checksums": "on", "listen_addresses": "127.0.0.1", "shared_buffers": "16MB",
	} {
		if got := query(t, p.DSN(), `SELECT coalesce(current_setting('`+setting+`', true), (SELECT datcollate FROM pg_database WHERE datname = current_database()))`); got != want {
			t.Errorf("%s is %s, want %s", setting, got, want)
		}
	}
	if got := query(t, p.DSN(), `SELECT current_user || ' ' || current_database()`); got != "stormpost stormpost" {
		t.Errorf("connected as %s", got)
	}
	makeTable(t, p.DSN())

	if _, err := StartPostgres(testContext(t), PostgresConfig{Dir: dir}); !errors.Is(err, ErrInUse) {
		t.Errorf("a second start in one folder: %v", err)
	}
	pid, done := p.Pid(), p.Done()
	if err := p.Stop(testContext(t)); err != nil {
		t.Fatal(err)
	}
	<-done
	if p.Pid() != 0 || syscall.Kill(pid, 0) == nil {
		t.Errorf("pid %d lives after Stop", pid)
	}
	if err := p.Restart(testContext(t)); err == nil {
		t.Error("Restart after Stop succeeded without the folder's lock")
	}

	again := startPostgres(t, dir)
	if n := rows(t, again.DSN()); n != "1" {
		t.Errorf("%s rows after a restart", n)
	}
}

func TestPostgresWantsThePassword(t *testing.T) {
	p := startPostgres(t, t.TempDir())
	st, err := os.Stat(filepath.Join(p.dir, "password"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the password's file: %v, %v", st, err)
	}
	wrong := strings.Replace(p.DSN(), p.password, "wrong", 1)
	if _, err := pgx.Connect(testContext(t), wrong); err == nil {
		t.Error("a wrong password was taken")
	}
}

func TestPostgresKillAndRestart(t *testing.T) {
	p := startPostgres(t, t.TempDir())
	makeTable(t, p.DSN())
	dsn, done := p.DSN(), p.Done()
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	<-done
	noServers(t, p.data(), "postgres")
	if _, err := pgx.Connect(testContext(t), dsn); err == nil {
		t.Fatal("connected to a killed server")
	}
	if err := p.Restart(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if n := rows(t, dsn); n != "1" {
		t.Errorf("%s rows at the old address", n)
	}
}

// A frozen server neither answers nor refuses; thawed, it goes on where it was.
func TestPostgresFreeze(t *testing.T) {
	p := startPostgres(t, t.TempDir())
	ctx := testContext(t)
	conn, err := pgx.Connect(ctx, p.DSN())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		_, err := conn.Exec(ctx, `SELECT 1`)
		answered <- err
	}()
	select {
	case err := <-answered:
		t.Fatalf("an open connection answered while frozen: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	if err := p.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Errorf("after the thaw: %v", err)
	}
	// Stop must end a frozen server, too.
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(ctx); err != nil {
		t.Error(err)
	}
}

func TestPostgresAfterItsParentWasKilled(t *testing.T) {
	dir := t.TempDir()
	par := startParent(t, "postgres", dir)
	makeTable(t, par.addr)
	par.kill9(t)
	p := startPostgres(t, dir)
	if n := rows(t, p.DSN()); n != "1" {
		t.Errorf("%s rows after the parent's end", n)
	}
	pids, err := serversIn(testContext(t), p.data(), "postgres")
	if err != nil || slices.Contains(pids, par.pid) || !slices.Contains(pids, p.Pid()) {
		t.Errorf("%v run in the folder; the new server is %d, the orphan was %d (%v)", pids, p.Pid(), par.pid, err)
	}
}

// Without a signal at the parent's death the orphan runs on, until a start in
// its folder, and only in its folder, stops it.
func TestPostgresStopsAnOrphan(t *testing.T) {
	dir := t.TempDir()
	p := startPostgres(t, dir)
	bystander := startPostgres(t, t.TempDir())
	makeTable(t, p.DSN())
	if err := p.Stop(testContext(t)); err != nil {
		t.Fatal(err)
	}
	orphan := p.command() // no Pdeathsig, and nobody holds the folder's lock
	if err := orphan.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- orphan.Wait() }()
	t.Cleanup(func() { orphan.Process.Kill() })
	if err := waitConnect(t, p.DSN(), ended); err != nil {
		t.Fatal(err)
	}
	if err := orphan.Process.Signal(syscall.SIGSTOP); err != nil { // a stuck one
		t.Fatal(err)
	}
	again := startPostgres(t, dir)
	if err := <-ended; err != nil {
		t.Errorf("the orphan wasn't shut down in good order: %v", err)
	}
	if n := rows(t, again.DSN()); n != "1" {
		t.Errorf("%s rows", n)
	}
	if query(t, bystander.DSN(), `SELECT 'alive'`) != "alive" {
		t.Error("the server of another folder was stopped")
	}
}

func waitConnect(t *testing.T, dsn string, ended <-chan error) error {
	t.Helper()
	for {
		conn, err := pgx.Connect(testContext(t), dsn)
		if err == nil {
			return conn.Close(testContext(t))
		}
		select {
		case err := <-ended:
			return fmt.Errorf("the orphan ended by itself: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// A process that merely works in the data folder is none of ours, even if a
// stale postmaster.pid has its number; nor does it keep the server from starting.
func TestPostgresLeavesStrangersAlone(t *testing.T) {
	dir := t.TempDir()
	p := startPostgres(t, dir)
	if err := p.Stop(testContext(t)); err != nil {
		t.Fatal(err)
	}
	cat := exec.Command("cat")
	cat.Dir = p.data()
	stdin, err := cat.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	pidFile := []byte(strings.Join([]string{strconv.Itoa(cat.Process.Pid), p.data(), "0", "0", "", "", ""}, "\n"))
	if err := os.WriteFile(filepath.Join(p.data(), "postmaster.pid"), pidFile, 0o600); err != nil {
		t.Fatal(err)
	}
	startPostgres(t, dir)
	stdin.Close()
	if err := cat.Wait(); err != nil {
		t.Errorf("the stranger was hurt: %v", err)
	}
}

func TestPostgresRunsAsTheOwnerOfItsData(t *testing.T) {
	dir, err := os.MkdirTemp("", "devstack-owner-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	p := &Postgres{log: discard, dir: filepath.Join(dir, "pg"), settings: small}
	if p.bin, err = findPostgres(""); err != nil {
		t.Fatal(err)
	}
	uid := os.Getuid()
	if uid == 0 {
		var gid int
		if uid, gid, err = nonRoot(); err != nil {
			t.Fatal(err)
		}
		p.account = otherUser(uid, gid)
	} else if p.account, err = serverAccount(ctx, p.bin, p.data()); err != nil {
		t.Fatal(err)
	}
	if p.dir, err = ownFolder(p.dir); err != nil {
		t.Fatal(err)
	}
	if _, err := keptText(filepath.Join(p.dir, "password"), func() string { return "secret" }); err != nil {
		t.Fatal(err)
	}
	if err := p.initdb(ctx); err != nil {
		t.Fatal(err)
	}
	server := startPostgres(t, p.dir)
	if server.account.uid != uid {
		t.Errorf("runs as %d, not %d", server.account.uid, uid)
	}
	if query(t, server.DSN(), `SELECT 'alive'`) != "alive" {
		t.Error("no answer")
	}
}

func TestReachNamesTheFolderThatBlocks(t *testing.T) {
	blocked := filepath.Join(t.TempDir(), "blocked")
	dir := filepath.Join(blocked, "a", "b")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for p := filepath.Dir(blocked); p != os.TempDir() && p != "/"; p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(blocked, 0o700); err != nil {
		t.Fatal(err)
	}
	stranger := account{uid: os.Getuid() + 1, gid: os.Getgid() + 1}
	if err := stranger.reach(dir); err == nil || !strings.Contains(err.Error(), "can't enter "+blocked+" ") {
		t.Errorf("a closed parent: %v", err)
	}
	if err := os.Chmod(blocked, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := stranger.reach(dir); err != nil {
		t.Errorf("an open parent: %v", err)
	}
}

// A machine without PostgreSQL gets it, once: the second start finds it in the
// cache, and a cluster is opened by the version that made it.
func TestPostgresIsFetched(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	defer func(was []string) { pgFolders = was }(pgFolders)
	pgFolders = nil
	cache := t.TempDir()
	t.Setenv(CacheVariable, cache)
	dir := t.TempDir()
	cfg := PostgresConfig{Dir: filepath.Join(dir, "pg"), Settings: small}
	if _, err := StartPostgres(testContext(t), cfg); !errors.Is(err, ErrNoPostgres) {
		t.Fatalf("nobody asked for it: %v", err)
	}
	cfg.Fetch = true
	for range 2 {
		p, err := StartPostgres(testContext(t), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if got := query(t, p.DSN(), "select 'it runs'"); got != "it runs" {
			t.Errorf("answered %q", got)
		}
		if err := p.Stop(testContext(t)); err != nil {
			t.Error(err)
		}
		if !strings.HasPrefix(p.bin, cache) && !strings.HasPrefix(p.bin, dir) {
			t.Errorf("run from %s", p.bin)
		}
	}
	if left, err := filepath.Glob(filepath.Join(cache, "fetching-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	if _, err := fetchPostgres(testContext(t), "", "9", discard); err == nil || !strings.Contains(err.Error(), "9 can't be fetched") {
		t.Errorf("an old version: %v", err)
	}
}
