package teststack

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestMain(m *testing.M) { Main(m) }

func TestDatabasesAreSeparateAndDropped(t *testing.T) {
	var first string
	t.Run("first", func(t *testing.T) {
		first = Database(t)
		if err := execOnce(first, `CREATE TABLE mine (a int)`); err != nil {
			t.Fatal(err)
		}
		if err := execOnce(Database(t), `SELECT * FROM mine`); err == nil {
			t.Error("a second database has the first one's table")
		}
		// A connection that the test forgets doesn't keep its database.
		if _, err := pgx.Connect(context.Background(), first); err != nil {
			t.Fatal(err)
		}
	})
	if err := execOnce(first, `SELECT 1`); err == nil {
		t.Error("the database outlives its test")
	}
}

func TestKafkaIsShared(t *testing.T) {
	brokers := Kafka(t)
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := client.Ping(ctx); err != nil {
		t.Error(err)
	}
	if again := Kafka(t); strings.Join(again, ",") != strings.Join(brokers, ",") {
		t.Errorf("brokers %v, then %v", brokers, again)
	}
}

func TestOwnServersLeaveNothing(t *testing.T) {
	tmp := t.TempDir()
	if err := os.Chmod(filepath.Dir(tmp), 0o711); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", tmp)
	t.Run("run", func(t *testing.T) {
		p, k := NewPostgres(t), NewKafka(t, 1)
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
		if err := k.Kill(0); err != nil {
			t.Error(err)
		}
	})
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}

func TestEnvironmentNamesTheStores(t *testing.T) {
	t.Setenv(DSNVariable, "postgres://somewhere/x")
	t.Setenv(KafkaVariable, "a:1,b:2")
	dsn, brokers, stop, err := Start(t.Context(), true)
	if err != nil || dsn != "postgres://somewhere/x" || brokers != "a:1,b:2" {
		t.Fatalf("got %s, %s, %v", dsn, brokers, err)
	}
	if err := stop(t.Context()); err != nil {
		t.Error(err)
	}
}
