package app

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	quotedLogs = regexp.MustCompile("log (?:says )?((?:`[^`]+`(?:, )?)+)")
	quoted     = regexp.MustCompile("`([^`]+)`")
	metrics    = regexp.MustCompile(`\bstormpost_[a-z_]+`)
	links      = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	headings   = regexp.MustCompile(`(?m)^#+ (.+)$`)
	notAnchor  = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// TestRunbookQuotesTheCode looks for each log line and metric that the runbook
// names in the sources: one that nobody prints any more is of no help at night.
func TestRunbookQuotesTheCode(t *testing.T) {
	root := filepath.Join("..", "..")
	var source strings.Builder
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && filepath.Ext(name) == ".go" && !strings.HasSuffix(name, "_test.go") {
			b, err := os.ReadFile(name)
			source.Write(b)
			return err
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	code := source.String()
	b, err := os.ReadFile(filepath.Join(root, "docs", "runbook.md"))
	if err != nil {
		t.Fatal(err)
	}
	runbook := string(b)
	lines := 0
	for _, found := range quotedLogs.FindAllStringSubmatch(runbook, -1) {
		for _, q := range quoted.FindAllStringSubmatch(found[1], -1) {
			for part := range strings.SplitSeq(q[1], " … ") {
				lines++
				if !strings.Contains(code, part) {
					t.Errorf("nothing logs %q", part)
				}
			}
		}
	}
	if lines < 12 {
		t.Errorf("only %d log lines found in the runbook", lines)
	}
	for _, name := range metrics.FindAllString(runbook, -1) {
		instrument := strings.TrimSuffix(strings.TrimSuffix(name, "_total"), "_seconds")
		if !strings.Contains(strings.ReplaceAll(code, ".", "_"), `"`+instrument+`"`) {
			t.Errorf("nothing measures %s", name)
		}
	}
}

// TestDocumentsLink follows the links between the documents, to their headings.
func TestDocumentsLink(t *testing.T) {
	root := filepath.Join("..", "..")
	documents, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil || len(documents) < 4 {
		t.Fatal(documents, err)
	}
	for _, doc := range append(documents, filepath.Join(root, "CONTRIBUTING.md")) {
		b, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range links.FindAllStringSubmatch(string(b), -1) {
			to, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(to, "://") {
				continue
			}
			target := doc
			if to != "" {
				target = filepath.Join(filepath.Dir(doc), to)
			}
			text, err := os.ReadFile(target)
			if info, statErr := os.Stat(target); statErr == nil && info.IsDir() {
				err = nil
			}
			if err != nil {
				t.Errorf("%s links to %s: %v", doc, m[1], err)
				continue
			}
			if anchor != "" && !hasHeading(string(text), anchor) {
				t.Errorf("%s links to %s, which has no such heading", doc, m[1])
			}
		}
	}
}

// hasHeading says whether one of a document's headings has an anchor, by
// GitHub's rule.
func hasHeading(text, anchor string) bool {
	for _, h := range headings.FindAllStringSubmatch(text, -1) {
		if strings.ReplaceAll(notAnchor.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-") == anchor {
			return true
		}
	}
	return false
}
