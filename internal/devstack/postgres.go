package devstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	pgUser     = "stormpost"
	pgDatabase = "stormpost"

	// pgReady bounds a start, recovery after a crash included.
	pgReady = 2 * time.Minute
)

// PostgresConfig says how to run PostgreSQL. Only Dir must be set.
type PostgresConfig struct {
	Dir      string            // PostgreSQL's own folder, made when missing
	Port     int               // on loopback; 0 takes a free one at each start
	Settings map[string]string // over the defaults, as in postgresql.conf
	Fetch    bool              // on a machine without server programs, fetch them, once: into DefaultCache, as root into Dir
	Logger   *slog.Logger      // nil logs nothing
}

// Postgres is a PostgreSQL server run as a child process. Its methods are safe
// for concurrent use.
//
// In its folder: data (the cluster), password (of the superuser stormpost),
// server.log and lock.
type Postgres struct {
	log      *slog.Logger
	dir      string
	bin      string
	fetch    bool
	account  account
	password string
	settings map[string]string
	lock     *folderLock

	mu   sync.Mutex
	port int
	srv  *child // nil before the first start
}

// StartPostgres starts the server of cfg.Dir and returns once it takes
// connections. On first use it makes the cluster: superuser and database
// stormpost, UTF-8, C locale, checksums, passwords required. A server that a
// killed process left running in the folder is stopped first. It fails with
// ErrInUse when a living process runs a server there, with ErrNoPostgres when
// no server programs are found.
func StartPostgres(ctx context.Context, cfg PostgresConfig) (_ *Postgres, err error) {
	p := &Postgres{log: cfg.Logger, port: cfg.Port, fetch: cfg.Fetch, settings: maps.Clone(pgDefaults)}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	maps.Copy(p.settings, cfg.Settings)
	if p.dir, err = ownFolder(cfg.Dir); err != nil {
		return nil, err
	}
	if p.lock, err = lockFolder(p.dir); err != nil {
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	defer func() {
		if err != nil {
			p.lock.release()
		}
	}()
	if err := p.prepare(ctx); err != nil {
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	if err := p.start(ctx); err != nil {
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	return p, nil
}

// pgDefaults suit a developer's machine with a few cores. Nothing that makes a
// commit less durable may stand here.
var pgDefaults = map[string]string{
	"fsync":                      "on",
	"synchronous_commit":         "on",
	"full_page_writes":           "on",
	"shared_buffers":             "256MB",
	"max_connections":            "200",
	"max_wal_size":               "2GB",
	"wal_compression":            "on",
	"checkpoint_timeout":         "15min",
	"jit":                        "off", // compiling costs more than these statements
	"timezone":                   "UTC",
	"log_timezone":               "UTC",
	"log_checkpoints":            "off",
	"unix_socket_directories":    "",     // its path may be too long, and TCP does
	"dynamic_shared_memory_type": "mmap", // in the data folder: a kill leaves nothing in /dev/shm
}

// DSN is the address of the database stormpost, as a URL with its password.
func (p *Postgres) DSN() string { return p.dsn(pgDatabase) }

func (p *Postgres) dsn(database string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dsnLocked(database)
}

func (p *Postgres) dsnLocked(database string) string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(pgUser, p.password), Host: loopback(p.port), Path: database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Pid is the postmaster's process id, 0 while the server is down.
func (p *Postgres) Pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.srv == nil || p.srv.ended() {
		return 0
	}
	return p.srv.pid()
}

// Done is closed when the server that runs now ends, for whatever reason.
func (p *Postgres) Done() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.srv.done
}

// start runs the server and waits until it is ready. A free port that somebody
// else takes in between is replaced by another, as long as none was ever told.
func (p *Postgres) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pgReady)
	defer cancel()
	chosen := p.port == 0
	for try := 0; ; try++ {
		if chosen {
			var err error
			if p.port, err = FreePort(); err != nil {
				return err
			}
		}
		srv, err := startChild(p.command(), filepath.Join(p.dir, "server.log"), syscall.SIGINT)
		if err != nil {
			return err
		}
		if err = p.ready(ctx, srv); err == nil {
			p.srv = srv
			p.log.Info("postgresql ready", "port", p.port, "pid", srv.pid(), "dir", p.dir)
			return nil
		}
		taken := srv.ended() && !portFree(p.port)
		endErr := p.end(context.WithoutCancel(ctx), srv)
		if !chosen || !taken || try == 5 {
			return errors.Join(err, endErr)
		}
	}
}

func (p *Postgres) command() *exec.Cmd {
	args := []string{"-D", p.data(), "-c", "listen_addresses=127.0.0.1", "-c", fmt.Sprint("port=", p.port)}
	for _, k := range slices.Sorted(maps.Keys(p.settings)) {
		args = append(args, "-c", k+"="+p.settings[k])
	}
	cmd := exec.Command(filepath.Join(p.bin, "postgres"), args...)
	cmd.Env = pgEnv()
	cmd.SysProcAttr = p.account.attr()
	return cmd
}

// ready connects until that works, and makes the database if it isn't there.
func (p *Postgres) ready(ctx context.Context, srv *child) error {
	poll := time.NewTicker(25 * time.Millisecond)
	defer poll.Stop()
	for {
		conn, err := connectQuickly(ctx, p.dsnLocked("postgres"))
		if err == nil {
			err = ensureDatabase(ctx, conn)
			return errors.Join(err, conn.Close(ctx))
		}
		select {
		case <-srv.done:
			return srv.exitError()
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL isn't ready: %w (%w); the end of %s:\n%s", ctx.Err(), err, srv.log, logTail(srv.log))
		case <-poll.C:
		}
	}
}

func connectQuickly(ctx context.Context, dsn string) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return pgx.Connect(ctx, dsn)
}

func ensureDatabase(ctx context.Context, conn *pgx.Conn) error {
	var there bool
	err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, pgDatabase).Scan(&there)
	if err != nil {
		return fmt.Errorf("look for the database: %w", err)
	}
	if there {
		return nil
	}
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{pgDatabase}.Sanitize()); err != nil {
		return fmt.Errorf("make the database: %w", err)
	}
	return nil
}

func (p *Postgres) data() string { return filepath.Join(p.dir, "data") }

// ownFolder makes dir, for the caller alone, and gives its real path.
func ownFolder(dir string) (string, error) {
	if dir == "" {
		return "", errors.New("devstack: no folder given")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make the folder: %w", err)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find the folder: %w", err)
	}
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return "", fmt.Errorf("find the folder: %w", err)
	}
	return real, nil
}
