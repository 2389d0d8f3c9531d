package devstack

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ErrNoPostgres is wrapped by what a start returns when the machine has no
// usable PostgreSQL server programs.
var ErrNoPostgres = errors.New("no PostgreSQL server programs found")

// pgOldest is the oldest major version whose features the ledger may use.
const pgOldest = 15

// Where systems put the programs outside PATH, a folder per major version.
var pgFolders = []string{
	"/usr/lib/postgresql/*/bin",             // Debian, Ubuntu
	"/usr/pgsql-*/bin",                      // PostgreSQL's packages for Fedora and Red Hat
	"/opt/homebrew/opt/postgresql@*/bin",    // Homebrew
	"/usr/local/opt/postgresql@*/bin",       // Homebrew on Intel
	"/Applications/Postgres.app/*/*/*/bin/", // Postgres.app
}

// findPostgres gives the folder with postgres and initdb: PATH's, else the
// newest of the usual places. A cluster that is there already (major, else "")
// is opened only by its own major version.
func findPostgres(major string) (string, error) {
	bins, err := postgresFolders()
	if err != nil {
		return "", err
	}
	var seen []string
	for _, bin := range bins {
		v, err := pgMajor(bin)
		if err != nil {
			return "", err
		}
		if major == strconv.Itoa(v) || major == "" && v >= pgOldest {
			return bin, nil
		}
		seen = append(seen, fmt.Sprintf("%s (version %d)", bin, v))
	}
	want := fmt.Sprintf("version %d or newer", pgOldest)
	if major != "" {
		want = "version " + major + ", which made this data folder"
	}
	found := ""
	if len(seen) > 0 {
		found = "; there is only " + strings.Join(seen, ", ")
	}
	return "", fmt.Errorf("%w, of %s%s: install them (Debian, Ubuntu: apt-get install postgresql; Fedora: dnf install postgresql-server; macOS: brew install postgresql@17), or give an address of a running server",
		ErrNoPostgres, want, found)
}

func postgresFolders() ([]string, error) {
	var bins []string
	if path, err := exec.LookPath("postgres"); err == nil {
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			return nil, fmt.Errorf("follow %s: %w", path, err)
		}
		bins = append(bins, filepath.Dir(real))
	}
	for _, pattern := range pgFolders {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("look for PostgreSQL: %w", err)
		}
		slices.SortFunc(found, func(a, b string) int { return cmp.Compare(lastNumber(b), lastNumber(a)) })
		bins = append(bins, found...)
	}
	return slices.DeleteFunc(bins, func(bin string) bool {
		for _, program := range []string{"postgres", "initdb"} {
			if st, err := os.Stat(filepath.Join(bin, program)); err != nil || st.Mode()&0o111 == 0 {
				return true
			}
		}
		return false
	}), nil
}

// pgMajor asks the server program for its major version: "postgres (PostgreSQL)
// 17.2 (Debian …)" is 17.
func pgMajor(bin string) (int, error) {
	path := filepath.Join(bin, "postgres")
	out, err := exec.Command(path, "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("ask %s for its version: %w", path, err)
	}
	_, version, _ := strings.Cut(string(out), "(PostgreSQL) ")
	digits := strings.IndexFunc(version+" ", func(r rune) bool { return r < '0' || r > '9' })
	v, err := strconv.Atoi(version[:digits])
	if err != nil {
		return 0, fmt.Errorf("%s --version says %q", path, strings.TrimSpace(string(out)))
	}
	return v, nil
}

// lastNumber is the last run of digits in s: the version in a folder's name.
func lastNumber(s string) int {
	fields := strings.FieldsFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	if len(fields) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(fields[len(fields)-1])
	return n
}
