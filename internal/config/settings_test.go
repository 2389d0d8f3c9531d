package config

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write docs/settings.md")

const settingsHead = `# Settings

Generated from ` + "`internal/config`" + `; change it there, and run ` + "`make generate`" + `.

Settings come from the YAML file of ` + "`--config`" + ` (or ` + "`STORMPOST_CONFIG`" + `), where a dot is a level, and over it from the
variables. A key or a ` + "`STORMPOST_*`" + ` variable that nobody knows is an error that names it. Durations are written as ` + "`30s`, `10m`, `72h`" + `;
lists as ` + "`a,b`" + ` in a variable. A secret is given by reference, ` + "`file:/run/secrets/smtp` or `env:SMTP_PASSWORD`" + `, or as it is; logs never show it.
Files with secrets that anyone on the machine may read are refused (` + "`secrets.world_readable`" + `).
All settings are read at start: a change needs a restart (see [runbook.md](runbook.md#stop-restart-upgrade)), but for [credentials](#credentials).

| Key | Variable | Default | Meaning |
|---|---|---|---|
`

const settingsCredentials = `What rotates without a restart (see [runbook.md](runbook.md#credentials-and-certificates)). ` + "`smtp.password`, `fcm.service_account` and `fcm.token`" + `, and the secrets here,
are given as ` + "`file:PATH`" + `, which is read again each second, as ` + "`credential:NAME`" + ` (one of these, that comes before), as ` + "`env:NAME`" + `, or as they are.

` + "```yaml" + `
credentials:
  - {name: vault-token, source: value, value: "file:/run/secrets/vault-token"}
  - {name: mail-secret, source: vault, url: "https://vault.example:8200", token: "credential:vault-token", path: mail, field: client_secret}
  - {name: mail, source: client-credentials, url: "https://login.example/token", client_id: stormpost, client_secret: "credential:mail-secret", scopes: ["smtp.send"]}
  - {name: ses, source: vault-lease, url: "https://vault.example:8200", token: "credential:vault-token", path: aws/creds/mail, field: "access_key:secret_key"}
smtp: {addr: "smtp.example:587", tls: starttls-required, username: shop@example.com, auth: xoauth2, password: "credential:mail"}
` + "```"

const settingsRoutes = `Which providers messages go to, in order. The first route that fits a message holds; what none fits goes by ` + "`delivery.email`" + `, or, a push, to
the first provider that takes its platform. What a provider defers the next of its route gets at the next attempt, behind the last the first; what was rejected, or
whose answer was lost, goes nowhere else. While a provider can't be used, the next takes its place at once.

` + "```yaml" + `
delivery:
  routes:
    - {channel: email, tenant: shop, class: transactional, providers: [ses, smtp]}
    - {channel: email, class: campaign, providers: [sendgrid, ses]}
` + "```" + `

Email is checked at the door by the first provider of each route; a later one that can't take a message is passed over.`

const settingsTail = `
## Variables

Beside settings, these variables are read:

| Variable | By | Meaning |
|---|---|---|
| ` + "`STORMPOST_CONFIG`" + ` | every command | the settings file, as ` + "`--config`" + ` |
| ` + "`STORMPOST_API`, `STORMPOST_API_KEY`" + ` | every command with ` + "`--api`" + ` | where the API is, and the key to call it with |
| ` + "`STORMPOST_CACHE`, `STORMPOST_TEST_*`" + ` | tests | where downloads are kept; stores to use (see [CONTRIBUTING.md](../CONTRIBUTING.md)) |
| ` + "`OTEL_*`" + ` | ` + "`serve`, `dev`" + ` | the standard's: ` + "`OTEL_EXPORTER_OTLP_ENDPOINT`" + ` turns on traces and pushed metrics, over http/protobuf |
`

// TestSettingsDocument fails when docs/settings.md is not what the settings
// are; with -update it writes it.
func TestSettingsDocument(t *testing.T) {
	comments := fieldComments(t)
	var doc strings.Builder
	doc.WriteString(settingsHead)
	rows := 0
	var walk func(v reflect.Value, prefix string)
	walk = func(v reflect.Value, prefix string) {
		for i := range v.NumField() {
			f := v.Type().Field(i)
			key := prefix + f.Tag.Get("koanf")
			if f.Type.Kind() == reflect.Struct {
				walk(v.Field(i), key+".")
				continue
			}
			meaning := comments[v.Type().Name()+"."+f.Name]
			if meaning == "" {
				t.Errorf("%s.%s has no comment that says what %s means", v.Type().Name(), f.Name, key)
			}
			variable := "`STORMPOST_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_")) + "`"
			if f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct {
				variable = "" // a list of structs has no form as a variable
			}
			fmt.Fprintf(&doc, "| `%s` | %s | %s | %s |\n", key, variable, shown(v.Field(i)), strings.ReplaceAll(meaning, "|", `\|`))
			rows++
		}
	}
	walk(reflect.ValueOf(Default()), "")
	for _, list := range []struct {
		key, about string
		of         any
	}{
		{"delivery.routes[]", settingsRoutes, Route{}},
		{"smtp.dkim[]", "Each is the key that signs mail from a domain.", DKIM{}},
		{"credentials[]", settingsCredentials, Credential{}},
	} {
		fmt.Fprintf(&doc, "\n## `%s`\n\n%s\n\n| Key | Meaning |\n|---|---|\n", list.key, list.about)
		for f := range reflect.TypeOf(list.of).Fields() {
			meaning := comments[reflect.TypeOf(list.of).Name()+"."+f.Name]
			if meaning == "" {
				t.Errorf("%s.%s has no comment", list.key, f.Name)
			}
			fmt.Fprintf(&doc, "| `%s` | %s |\n", f.Tag.Get("koanf"), strings.ReplaceAll(meaning, "|", `\|`))
		}
	}
	doc.WriteString(settingsTail)

	known := 0
	keys(reflect.TypeFor[Config](), "", func(key string) {
		known++
		if row := "| `" + strings.ReplaceAll(key, delim, ".") + "` |"; !strings.Contains(doc.String(), row) {
			t.Errorf("no row for %s", key)
		}
	})
	if rows != known || rows < 40 {
		t.Errorf("%d rows for %d settings", rows, known)
	}

	path := filepath.Join("..", "..", "docs", "settings.md")
	if *update {
		if err := os.WriteFile(path, []byte(doc.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != doc.String() {
		t.Errorf("%s is out of date: run make generate", path)
	}
}

// shown is how a default is written.
func shown(v reflect.Value) string {
	var text string
	switch x := v.Interface().(type) {
	case time.Duration:
		text = x.String()
		for _, zero := range []string{"m0s", "h0m"} {
			if strings.HasSuffix(text, zero) {
				text = text[:len(text)-2]
			}
		}
	case []string:
		text = strings.Join(x, ",")
	default:
		if !v.IsZero() || v.Kind() == reflect.Int || v.Kind() == reflect.Bool {
			text = fmt.Sprint(x)
		}
	}
	if text == "" {
		return ""
	}
	return "`" + text + "`"
}

// fieldComments reads the comment beside each field of the package's structs.
func fieldComments(t *testing.T) map[string]string {
	t.Helper()
	comments := make(map[string]string)
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		inspect(file, comments)
	}
	return comments
}

func inspect(file *ast.File, comments map[string]string) {
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		if s, ok := spec.Type.(*ast.StructType); ok {
			for _, f := range s.Fields.List {
				for _, name := range f.Names {
					comments[spec.Name.Name+"."+name.Name] = strings.TrimSpace(f.Comment.Text())
				}
			}
		}
		return true
	})
}
