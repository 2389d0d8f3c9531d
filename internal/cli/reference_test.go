package cli

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "write docs/cli.md")

// TestReference fails when docs/cli.md is not what --help tells; with -update
// it writes it.
func TestReference(t *testing.T) {
	var doc strings.Builder
	doc.WriteString("# Command line\n\nGenerated from `internal/cli`, as `--help` tells it; change it there, and run `make generate`.\n")
	root := (&command{}).root()
	writeReference(&doc, root)
	fmt.Fprintf(&doc, "\n## Every command\n\n```\n%s```\n", root.PersistentFlags().FlagUsages())

	path := filepath.Join("..", "..", "docs", "cli.md")
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

// writeReference writes what --help tells of cmd and the commands below it.
func writeReference(w io.Writer, cmd *cobra.Command) {
	fmt.Fprintf(w, "\n## %s\n\n%s.\n", cmd.CommandPath(), cmd.Short)
	for _, part := range []string{cmd.Long, cmd.Example} {
		if part != "" {
			fmt.Fprintf(w, "\n```\n%s\n```\n", part)
		}
	}
	if cmd.Runnable() {
		fmt.Fprintf(w, "\n    %s\n", cmd.UseLine())
	}
	if flags := cmd.LocalNonPersistentFlags().FlagUsages() + ownPersistent(cmd); flags != "" {
		fmt.Fprintf(w, "\n```\n%s```\n", flags)
	}
	for _, sub := range cmd.Commands() {
		writeReference(w, sub)
	}
}

// ownPersistent is a command's flags that its own commands have, too.
func ownPersistent(cmd *cobra.Command) string {
	if !cmd.HasParent() {
		return "" // every command's, told once
	}
	return cmd.PersistentFlags().FlagUsages()
}

// each visits every command.
func each(cmd *cobra.Command, visit func(*cobra.Command)) {
	visit(cmd)
	for _, sub := range cmd.Commands() {
		each(sub, visit)
	}
}

func TestHelpIsHelpful(t *testing.T) {
	count := 0
	each((&command{}).root(), func(cmd *cobra.Command) {
		count++
		args := append(strings.Fields(cmd.CommandPath())[1:], "--help")
		r := run(t, nil, args...)
		if r.code != exitOK || r.err != "" {
			t.Errorf("%s: exit %d, %q", cmd.CommandPath(), r.code, r.err)
		}
		if len(r.out) < 150 || !strings.Contains(r.out, "Usage:") {
			t.Errorf("%s --help says little:\n%s", cmd.CommandPath(), r.out)
		}
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: want a short description without a full stop, not %q", cmd.CommandPath(), cmd.Short)
		}
		for line := range strings.Lines(cmd.LocalFlags().FlagUsages()) {
			if _, meaning, _ := strings.Cut(strings.TrimSpace(line), "   "); strings.TrimSpace(meaning) == "" {
				t.Errorf("%s: a flag without description: %s", cmd.CommandPath(), line)
			}
		}
	})
	if count < 13 {
		t.Errorf("only %d commands", count)
	}
}

var words = regexp.MustCompile(`"[^"]*"|\S+`)

// exampleArgs is an example as a shell would split it.
func exampleArgs(line string) (args []string) {
	for _, w := range words.FindAllString(line, -1) {
		args = append(args, strings.Trim(w, `"`))
	}
	return args
}

// TestExamplesParse parses the examples as command lines: their commands and
// flags are there, and their arguments as many as are wanted.
func TestExamplesParse(t *testing.T) {
	count := 0
	each((&command{}).root(), func(cmd *cobra.Command) {
		for line := range strings.Lines(cmd.Example) {
			args := exampleArgs(line)
			if len(args) == 0 {
				continue
			}
			count++
			if args[0] != "stormpost" {
				t.Errorf("%q is no command line of ours", line)
				continue
			}
			found, rest, err := (&command{}).root().Find(args[1:])
			if err != nil {
				t.Errorf("%q: %v", line, err)
				continue
			}
			if err := found.ParseFlags(rest); err != nil {
				t.Errorf("%q: %v", line, err)
				continue
			}
			if err := found.ValidateArgs(found.Flags().Args()); err != nil {
				t.Errorf("%q: %v", line, err)
			}
			if err := found.ValidateRequiredFlags(); err != nil {
				t.Errorf("%q: %v", line, err)
			}
			if !strings.HasPrefix(found.CommandPath(), cmd.CommandPath()) {
				t.Errorf("%q is an example of %s", line, cmd.CommandPath())
			}
		}
	})
	if count < 10 {
		t.Errorf("only %d examples", count)
	}
}
