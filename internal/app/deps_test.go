package app

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/stormpost/stormpost"

// parts never import each other: internal/app joins them.
var parts = []string{"ingest", "delivery", "recovery", "dedupe", "internal/broker", "internal/watch"}

// joiners may import several parts.
var joiners = []string{"internal/app", "internal/cli", "internal/promise"}

// guarded lists libraries by import path, with the folders of those who alone
// may import them. Tests may import any.
var guarded = map[string][]string{
	"github.com/jackc/pgx/v5":                    {"dedupe", "internal/devstack", "internal/drill"},
	"github.com/exaring/otelpgx":                 {"dedupe"},
	"github.com/pressly/goose/v3":                {"dedupe"},
	"github.com/segmentio/kafka-go":              {"internal/broker"},
	"github.com/twmb/franz-go":                   {"internal/devstack"},
	"github.com/fergusstrange/embedded-postgres": {"internal/devstack"},
	"go.opentelemetry.io/otel/sdk":               {"internal/telemetry"},
	"go.opentelemetry.io/otel/exporters":         {"internal/telemetry"},
	"github.com/spf13/cobra":                     {"internal/cli"},
}

// offence says which rule is broken when a file of the package in folder from
// imports path to, or nothing. test is whether it is a test's file.
func offence(from, to string, test bool) string {
	local, ours := strings.CutPrefix(to, module+"/")
	if from == "internal/message" && to != "github.com/go-json-experiment/json" && (ours || strings.Contains(strings.Split(to, "/")[0], ".")) {
		return "internal/message imports the standard library alone (but for decision 7)"
	}
	if test {
		return ""
	}
	for lib, owners := range guarded {
		if within(to, lib) && !withinAny(from, owners) {
			return "only " + strings.Join(owners, " and ") + " may import " + lib
		}
	}
	if !ours {
		return ""
	}
	if from == "internal/drill/judge" && local != "internal/sim" {
		return "the judge reads files, and nothing of what it judges"
	}
	if within(from, "cmd") {
		if local != "internal/cli" {
			return "commands import internal/cli, and nothing else"
		}
		return ""
	}
	if local == "internal/cli" || local == "internal/app" && from != "internal/cli" {
		return "nobody looks upstairs, to " + local
	}
	mine, theirs := partOf(from), partOf(local)
	switch {
	case theirs == "" || slices.Contains(joiners, from):
		return ""
	case mine == "" && within(from, "internal") && from != "internal/bench":
		return "what all parts stand on imports none of them"
	case mine != "" && mine != theirs:
		return "parts don't import each other"
	case from == theirs:
		return theirs + " doesn't import its own adapters"
	case from != local && local != theirs:
		return "adapters import their parent, never a sibling"
	}
	return ""
}

func within(p, folder string) bool { return p == folder || strings.HasPrefix(p, folder+"/") }

func withinAny(p string, folders []string) bool {
	return slices.ContainsFunc(folders, func(f string) bool { return within(p, f) })
}

// partOf is the part that a folder belongs to, or nothing.
func partOf(p string) string {
	if i := slices.IndexFunc(parts, func(part string) bool { return within(p, part) }); i >= 0 {
		return parts[i]
	}
	return ""
}

// TestImports holds the tree to the rules, whatever a file's build tags.
func TestImports(t *testing.T) {
	root := filepath.Join("..", "..")
	files, seen := 0, map[string]bool{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			base := d.Name()
			if name != root && (base == "testdata" || base == "vendor" || base[0] == '.' || base[0] == '_') {
				return fs.SkipDir
			}
			return nil
		}
		if filepath.Ext(name) != ".go" {
			return nil
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		files++
		from := path.Dir(filepath.ToSlash(rel))
		seen[from] = true
		for _, spec := range file.Imports {
			to, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if why := offence(from, to, strings.HasSuffix(name, "_test.go")); why != "" {
				t.Errorf("%s imports %s: %s", rel, to, why)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// A walk in the wrong folder would find nothing wrong.
	for _, folder := range []string{"cmd/stormpost", "dedupe", "delivery/smtp", "ingest/httpapi", "internal/broker", "internal/message"} {
		if !seen[folder] {
			t.Errorf("%s was not looked at, of %d files", folder, files)
		}
	}
	if b, err := os.ReadFile(filepath.Join(root, "go.mod")); err != nil || !strings.HasPrefix(string(b), "module "+module+"\n") {
		t.Errorf("the module isn't %s (%v)", module, err)
	}
}

// TestImportRules shows that each rule can be broken, and what breaks none.
func TestImportRules(t *testing.T) {
	for _, bad := range [][2]string{
		{"ingest", module + "/delivery"},
		{"delivery", module + "/dedupe"},
		{"dedupe", module + "/ingest"},
		{"recovery", module + "/dedupe"},
		{"internal/broker", module + "/dedupe"},
		{"internal/watch", module + "/delivery"},
		{"ingest/httpapi", module + "/dedupe"},
		{"delivery/smtp", module + "/ingest/httpapi"},
		{"delivery/smtp", module + "/delivery/fcm"},
		{"delivery/fcm", module + "/delivery/providertest"},
		{"delivery", module + "/delivery/smtp"},
		{"internal/keyring", module + "/dedupe"},
		{"internal/sim", module + "/delivery/smtp"},
		{"internal/config", module + "/internal/app"},
		{"internal/app", module + "/internal/cli"},
		{"cmd/stormpost", module + "/internal/app"},
		{"internal/app", "github.com/jackc/pgx/v5/pgconn"},
		{"ingest", "github.com/jackc/pgx/v5"},
		{"delivery", "github.com/segmentio/kafka-go"},
		{"internal/app", "github.com/segmentio/kafka-go/sasl"},
		{"internal/app", "go.opentelemetry.io/otel/sdk/trace"},
		{"delivery", "go.opentelemetry.io/otel/exporters/prometheus"},
		{"internal/broker", "github.com/twmb/franz-go/pkg/kgo"},
		{"internal/message", "golang.org/x/net/idna"},
		{"internal/drill", module + "/dedupe"},
		{"internal/drill/judge", module + "/dedupe"},
		{"internal/drill/judge", module + "/internal/devstack"},
		{"internal/message", module + "/internal/keyring"},
	} {
		if offence(bad[0], bad[1], false) == "" {
			t.Errorf("%s may import %s", bad[0], bad[1])
		}
	}
	if offence("internal/message", "github.com/google/uuid", true) == "" {
		t.Error("internal/message's tests may import anything")
	}
	for _, good := range []struct {
		from, to string
		test     bool
	}{
		{"delivery", "go.opentelemetry.io/otel/trace", false},
		{"delivery/smtp", module + "/delivery", false},
		{"dedupe/ledgertest", module + "/dedupe", false},
		{"delivery/fcm", module + "/delivery/providertest", true},
		{"delivery", "go.opentelemetry.io/otel/sdk/trace", true},
		{"internal/app", module + "/dedupe", false},
		{"internal/cli", module + "/internal/app", false},
		{"cmd/stormpost", module + "/internal/cli", false},
		{"internal/message", "crypto/sha256", false},
	} {
		if why := offence(good.from, good.to, good.test); why != "" {
			t.Errorf("%s may not import %s: %s", good.from, good.to, why)
		}
	}
}
