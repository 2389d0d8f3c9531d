package teststack

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Database makes a new, empty database on the shared server and gives its DSN.
// It is dropped at the test's end, whoever is still connected.
func Database(t testing.TB) string {
	t.Helper()
	admin := Postgres(t)
	name := "test_" + strings.ToLower(rand.Text())
	if err := execOnce(admin, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()); err != nil {
		t.Fatalf("teststack: make a database: %v", err)
	}
	t.Cleanup(func() {
		if err := execOnce(admin, "DROP DATABASE "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)"); err != nil {
			t.Errorf("teststack: drop the test's database: %v", err)
		}
	})
	u, err := url.Parse(admin)
	if err != nil || u.Scheme == "" {
		t.Fatalf("teststack: %s must be a postgres:// URL", DSNVariable)
	}
	u.Path = "/" + name
	return u.String()
}

func execOnce(dsn, sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}
