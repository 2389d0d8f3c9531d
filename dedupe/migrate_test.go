package dedupe

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/devstack/teststack"
)

// withStep is the migrations up to a version, and perhaps one more step.
func withStep(t *testing.T, upTo, step string) fs.FS {
	t.Helper()
	files := fstest.MapFS{}
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.TrimPrefix(name, "migrations/")[:4] > upTo {
			continue
		}
		b, err := migrations.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = &fstest.MapFile{Data: b}
	}
	if step != "" {
		files["migrations/9999_step.sql"] = &fstest.MapFile{Data: []byte("-- +goose Up\n" + step)}
	}
	return files
}

func query[T any](t *testing.T, dsn, sql string) (v T) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if err := conn.QueryRow(t.Context(), sql).Scan(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

const newest = "9998"

func TestMigrateKeepsNumbering(t *testing.T) {
	t.Parallel()
	dsn := teststack.Database(t)
	if _, err := Migrate(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []struct{ step, fault string }{
		{`drop sequence position;`, "sequence position is missing"},
		{`drop index message_5_0_number;`, "unique index (stream, seq) of message_5_0 is missing"},
		{`alter table identity drop constraint identity_pkey;`, "key (key) of identity is missing"},
		{`alter table stream alter id drop identity;`, "the identity of stream.id is missing"},
		{`insert into tenant (name) values ('t'); insert into stream (tenant, name) select id, 's' from tenant where name = 't';`, "counter of stream 1 is missing"},
	} {
		_, err := migrate(t.Context(), dsn, withStep(t, newest, bad.step), false)
		var lost *NumberingLost
		if !errors.As(err, &lost) || len(lost.Faults) != 1 || lost.Faults[0].Name != bad.fault {
			t.Errorf("%s: %v", bad.step, err)
		}
		if faults := query[int](t, dsn, `select count(*) from goose_db_version where version_id = 9999`); faults != 0 {
			t.Errorf("%s: the step is noted as taken", bad.step)
		}
		if steps, err := CheckMigrate(t.Context(), dsn); err != nil || len(steps) == 0 {
			t.Fatalf("%s: it was not rolled back: %v", bad.step, err)
		}
	}
	if steps, err := migrate(t.Context(), dsn, withStep(t, newest, `create table good (a int);`), false); err != nil || len(steps) != 1 {
		t.Fatalf("a step that breaks nothing: %v %v", steps, err)
	}
}

// TestMigrateUpgrades: from what was released, also where numbering was broken
// before, for the guard comes with the step; and --check leaves nothing behind.
func TestMigrateUpgrades(t *testing.T) {
	t.Parallel()
	dsn := teststack.Database(t)
	if _, err := migrate(t.Context(), dsn, withStep(t, "0003", ""), false); err != nil {
		t.Fatal(err)
	}
	query[int64](t, dsn, `
		with t as (insert into tenant (name) values ('t') returning id), s as (insert into stream (tenant, name) select id, n from t, unnest('{a,b}'::text[]) n returning id)
		insert into counter (stream, last, floor) select id, 9, 7 from s where id = 1 returning stream`)
	steps, err := CheckMigrate(t.Context(), dsn)
	if err == nil || len(steps) < 4 || steps[2].Applied != true || steps[3].Applied != false {
		t.Fatalf("check: %v %v", steps, err)
	}
	if query[bool](t, dsn, `select to_regclass('numbering') is not null`) {
		t.Fatal("the check left a table")
	}
	if pending, err := Pending(t.Context(), dsn); err != nil || len(pending) == 0 {
		t.Fatalf("pending: %v %v", pending, err)
	}
	if done, err := Migrate(t.Context(), dsn); err != nil || len(done) == 0 {
		t.Fatalf("a ledger whose numbering was broken before: %v %v", done, err)
	}
	if n := query[int64](t, dsn, `select mark from stream where id = 1`); n != 7 {
		t.Fatalf("the mark is %d", n)
	}
	if done, err := Migrate(t.Context(), dsn); err != nil || len(done) != 0 {
		t.Fatalf("again: %v %v", done, err)
	}
}
