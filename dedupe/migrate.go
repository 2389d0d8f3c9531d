package dedupe

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"embed"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/stormpost/stormpost/internal/message"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migration is one step of the schema and whether it was applied.
type Migration struct {
	Version int64
	Name    string
	Applied bool
}

// Migrate brings the schema of dsn up to date, one process at a time, and says
// which steps it took. All of them are one transaction, in which the numbering
// is looked at before and after: if they would break it, none is taken, and the
// error is a *NumberingLost. What was broken before doesn't stop it.
func Migrate(ctx context.Context, dsn string) ([]Migration, error) {
	steps, err := migrate(ctx, dsn, migrations, false)
	if err != nil {
		return nil, fmt.Errorf("migrate: %w", err)
	}
	done := steps[:0]
	for _, s := range steps {
		if s.Applied {
			done = append(done, s)
		}
	}
	return done, nil
}

// CheckMigrate takes the pending steps, looks at the numbering before and after
// as Migrate does, and rolls all back. It lists every step, the pending ones
// with Applied false. While it runs it holds the locks that Migrate would hold.
func CheckMigrate(ctx context.Context, dsn string) ([]Migration, error) {
	steps, err := migrate(ctx, dsn, migrations, true)
	if err != nil {
		return steps, fmt.Errorf("migrate: %w", err)
	}
	return steps, nil
}

// Pending lists the steps that Migrate would take. It changes nothing.
func Pending(ctx context.Context, dsn string) (pending []Migration, err error) {
	err = inOne(ctx, dsn, migrations, func(p *goose.Provider, _ *pgx.Conn) error {
		status, err := p.Status(ctx)
		for _, s := range status {
			if s.State != goose.StateApplied {
				pending = append(pending, Migration{s.Source.Version, s.Source.Path, false})
			}
		}
		return err
	}, false)
	return pending, err
}

// Behind names the first step of the schema that this release has and the ledger
// doesn't; empty: there is none.
func (l *Ledger) Behind(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	rows, _ := l.pool.Query(ctx, `select version_id from goose_db_version where is_applied`) // rows have its error
	applied, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil && !isCode(err, codeNoTable) {
		return "", unavailable("schema", err)
	}
	files, err := fs.Glob(migrations, "migrations/*.sql") // in order
	if err != nil {
		return "", err
	}
	for _, f := range files {
		name := path.Base(f)
		version, err := goose.NumericComponent(name)
		if err != nil {
			return "", err
		}
		if !slices.Contains(applied, version) {
			return name, nil
		}
	}
	return "", nil
}

// NumberingLost says what a migration would have broken.
type NumberingLost struct{ Faults []message.Fault }

func (e *NumberingLost) Error() string {
	var b strings.Builder
	b.WriteString("numbering would be lost, so nothing was changed")
	for _, f := range e.Faults {
		b.WriteString("; " + f.String())
	}
	return b.String()
}

func migrate(ctx context.Context, dsn string, files fs.FS, check bool) (steps []Migration, err error) {
	err = inOne(ctx, dsn, files, func(p *goose.Provider, conn *pgx.Conn) error {
		status, err := p.Status(ctx)
		if err != nil {
			return err
		}
		before, err := look(ctx, conn)
		if err != nil {
			return fmt.Errorf("numbering before: %w", err)
		}
		results, err := p.Up(ctx)
		if err != nil {
			return err
		}
		taken := make(map[int64]bool, len(results))
		for _, r := range results {
			taken[r.Source.Version] = true
		}
		for _, s := range status {
			if applied := s.State == goose.StateApplied; check {
				steps = append(steps, Migration{s.Source.Version, s.Source.Path, applied})
			} else if !applied {
				steps = append(steps, Migration{s.Source.Version, s.Source.Path, taken[s.Source.Version]})
			}
		}
		after, err := look(ctx, conn)
		if err != nil {
			return fmt.Errorf("numbering after: %w", err)
		}
		var lost []message.Fault
		for _, f := range after {
			was := func(b message.Fault) bool { return b.Name == f.Name }
			if check || !slices.ContainsFunc(before, was) {
				lost = append(lost, f)
			}
		}
		if len(lost) > 0 {
			return &NumberingLost{lost}
		}
		return nil
	}, !check)
	return steps, err
}

// look is numberingOf, without a trace in the transaction.
func look(ctx context.Context, conn *pgx.Conn) ([]message.Fault, error) {
	if _, err := conn.Exec(ctx, `savepoint look`); err != nil {
		return nil, err
	}
	faults, err := numberingOf(ctx, conn)
	if err != nil {
		return nil, err
	}
	_, err = conn.Exec(ctx, `rollback to savepoint look`)
	return faults, err
}

// inOne runs fn with a goose provider, and commits what it did if that is asked
// for and fn has returned nil. goose begins a transaction for each step: within
// ours those are savepoints.
func inOne(ctx context.Context, dsn string, files fs.FS, fn func(*goose.Provider, *pgx.Conn) error, commit bool) error {
	cc, err := connConfig(dsn)
	if err != nil {
		return err
	}
	c, err := stdlib.GetConnector(*cc).Connect(ctx)
	if err != nil {
		return err
	}
	inner := &innerConn{Conn: c.(*stdlib.Conn)}
	conn := inner.Conn.Conn()
	defer conn.Close(context.WithoutCancel(ctx))
	// Nobody may wait behind a migration that waits for a lock.
	if _, err := conn.Exec(ctx, `begin; set local lock_timeout = '5s'; set local statement_timeout = 0`); err != nil {
		return err
	}
	// goose's own lock ends before our commit. It is waited for as goose's is.
	if _, err := conn.Exec(ctx, `set local lock_timeout = 0; select pg_advisory_xact_lock(hashtext('stormpost migrate')); set local lock_timeout = '5s'`); err != nil {
		return err
	}
	db := sql.OpenDB(inner)
	defer db.Close()
	db.SetMaxOpenConns(1)
	p, err := provider(db, files)
	if err != nil {
		return err
	}
	if err := fn(p, conn); err != nil || !commit {
		return err // closing the connection rolls back
	}
	_, err = conn.Exec(ctx, `commit`)
	return err
}

// innerConn is a connection on which transactions are savepoints, and its own
// connector.
type innerConn struct{ *stdlib.Conn }

func (c *innerConn) Connect(context.Context) (driver.Conn, error) { return c, nil }
func (c *innerConn) Driver() driver.Driver                        { return stdlib.GetDefaultDriver() }
func (c *innerConn) Close() error                                 { return nil } // by whoever made it
func (c *innerConn) ResetSession(context.Context) error           { return nil }

// BeginTx implements driver.ConnBeginTx.
func (c *innerConn) BeginTx(ctx context.Context, _ driver.TxOptions) (driver.Tx, error) {
	_, err := c.Conn.Conn().Exec(ctx, `savepoint step`)
	return savepoint{ctx, c.Conn.Conn()}, err
}

type savepoint struct {
	ctx  context.Context
	conn *pgx.Conn
}

func (s savepoint) Commit() error {
	_, err := s.conn.Exec(s.ctx, `release savepoint step`)
	return err
}

func (s savepoint) Rollback() error {
	_, err := s.conn.Exec(context.WithoutCancel(s.ctx), `rollback to savepoint step`)
	return err
}

// CheckDSN says what is wrong with dsn, before anything is connected to.
func CheckDSN(dsn string) error {
	_, err := connConfig(dsn)
	return err
}

func connConfig(dsn string) (*pgx.ConnConfig, error) {
	cc, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("dsn: %w", redactDSN(err))
	}
	// pool_* settings are for pgxpool; a server would refuse them.
	for k := range cc.RuntimeParams {
		if strings.HasPrefix(k, "pool_") {
			delete(cc.RuntimeParams, k)
		}
	}
	return cc, nil
}

// provider makes a provider of the steps in the folder migrations of files.
func provider(db *sql.DB, files fs.FS) (*goose.Provider, error) {
	files, err := fs.Sub(files, "migrations")
	if err != nil {
		return nil, err
	}
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return nil, err
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithSessionLocker(locker))
	if err != nil {
		return nil, fmt.Errorf("migrations: %w", err)
	}
	return p, nil
}
