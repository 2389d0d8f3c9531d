package devstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// fetchLimit bounds how long fetching PostgreSQL may take.
const fetchLimit = 3 * time.Minute

// fetchable is what can be fetched of each major version, the preferred one
// under "".
var fetchable = map[string]embeddedpostgres.PostgresVersion{
	"": embeddedpostgres.V15, "15": embeddedpostgres.V15, "16": embeddedpostgres.V16, "17": embeddedpostgres.V17, "18": embeddedpostgres.V18,
}

// fetchPostgres gives a folder with postgres and initdb of a major version
// ("": any), out of the cache ("" is DefaultCache). Some 15 MB are fetched from
// Maven Central, where others publish them, once.
func fetchPostgres(ctx context.Context, cache, major string, log *slog.Logger) (string, error) {
	version, ok := fetchable[major]
	if !ok {
		return "", fmt.Errorf("PostgreSQL %s can't be fetched", major)
	}
	folder, err := cached(cache, "postgres-"+string(version))
	if err != nil {
		return "", err
	}
	err = fetchOnce(ctx, folder, "programs", func(work string) error {
		log.Warn("there is no PostgreSQL on this machine: fetching it, once", "version", string(version), "to", folder)
		return unpackPostgres(ctx, version, work)
	})
	if err != nil {
		return "", fmt.Errorf("fetch PostgreSQL %s: %w", version, err)
	}
	return filepath.Join(folder, "bin"), nil
}

// unpackPostgres puts the programs into programs below work. The library starts what it has
// fetched, as its own caller and without asking for a lock; all that is wanted
// of it are the files, so it gets a data folder that can't be.
func unpackPostgres(ctx context.Context, version embeddedpostgres.PostgresVersion, work string) error {
	port, err := FreePort()
	if err != nil {
		return err
	}
	programs := filepath.Join(work, "programs")
	done := make(chan error, 1)
	go func() {
		done <- embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().Version(version).Port(uint32(port)).
			CachePath(filepath.Join(work, "archive")).BinariesPath(programs).RuntimePath(filepath.Join(work, "run")).
			DataPath(filepath.Join(os.DevNull, "none")).Logger(io.Discard)).Start()
	}()
	defer http.DefaultClient.CloseIdleConnections() // it is the one that fetches
	limit := time.NewTimer(fetchLimit)
	defer limit.Stop()
	select {
	case err = <-done:
	case <-limit.C:
		return fmt.Errorf("not done within %s", fetchLimit)
	case <-ctx.Done():
		return ctx.Err()
	}
	// It makes the runtime folder once all is unpacked.
	for _, made := range []string{filepath.Join(programs, "bin", "initdb"), filepath.Join(programs, "bin", "postgres"), filepath.Join(work, "run")} {
		if _, statErr := os.Stat(made); statErr != nil {
			return errors.Join(err, statErr)
		}
	}
	return nil
}
