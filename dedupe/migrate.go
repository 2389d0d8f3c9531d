package dedupe

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
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
// which steps it took.
func Migrate(ctx context.Context, dsn string) ([]Migration, error) {
	p, db, err := provider(dsn)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	results, err := p.Up(ctx)
	if err != nil {
		return nil, fmt.Errorf("migrate: %w", err)
	}
	done := make([]Migration, len(results))
	for i, r := range results {
		done[i] = Migration{r.Source.Version, r.Source.Path, true}
	}
	return done, nil
}

// Migrations lists the steps, and changes nothing but goose's own table.
func Migrations(ctx context.Context, dsn string) ([]Migration, error) {
	p, db, err := provider(dsn)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	status, err := p.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("migrations: %w", err)
	}
	all := make([]Migration, len(status))
	for i, s := range status {
		all[i] = Migration{s.Source.Version, s.Source.Path, s.State == goose.StateApplied}
	}
	return all, nil
}

func provider(dsn string) (*goose.Provider, *sql.DB, error) {
	cc, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, nil, fmt.Errorf("dsn: %w", redactDSN(err))
	}
	// pool_* settings are for pgxpool; a server would refuse them.
	for k := range cc.RuntimeParams {
		if len(k) > 5 && k[:5] == "pool_" {
			delete(cc.RuntimeParams, k)
		}
	}
	db := stdlib.OpenDB(*cc)
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, nil, err
	}
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return nil, nil, err
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithSessionLocker(locker))
	if err != nil {
		db.Close()
		return nil, nil, fmt.Errorf("migrations: %w", err)
	}
	return p, db, nil
}
