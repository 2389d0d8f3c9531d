package credential

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask is
		t.Fatal(err)
	}
}

func TestFileRules(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	write(t, filepath.Join(outside, "secret"), "CANARY", 0o600)
	in := func(name string) string { return filepath.Join(root, name) }
	write(t, in("good"), "CANARY", 0o440)
	write(t, in("world"), "CANARY", 0o644)
	write(t, in("writable"), "CANARY", 0o602)
	write(t, in("empty"), "", 0o600)
	write(t, in("large"), strings.Repeat("x", maxFile+1), 0o600)
	for _, err := range []error{
		os.Mkdir(in("folder"), 0o700), syscall.Mkfifo(in("pipe"), 0o600),
		os.Symlink("good", in("link")), os.Symlink(filepath.Join(outside, "secret"), in("escape")), os.Symlink("../"+filepath.Base(outside)+"/secret", in("climb")),
		os.Mkdir(in("..2026"), 0o700), os.Symlink("..2026", in("..data")), os.Symlink("..data/token", in("token")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	write(t, in("..2026/token"), "CANARY", 0o600)
	rooted, anywhere := FileRules{Root: root}, FileRules{}
	for name, tc := range map[string]struct {
		rules FileRules
		path  string
		want  string // in the error; empty: it is read
	}{
		"good":           {rooted, in("good"), ""},
		"relative":       {anywhere, in("folder/../good"), ""},
		"symlink":        {rooted, in("link"), ""},
		"kubernetes":     {rooted, in("token"), ""},
		"world-readable": {rooted, in("world"), "can be read or changed by anyone on the machine (mode 0644)"},
		"world-writable": {rooted, in("writable"), "anyone on the machine"},
		"allowed":        {FileRules{Root: root, WorldReadable: true}, in("world"), ""},
		"missing":        {rooted, in("nothing"), "no such file"},
		"missing too":    {anywhere, in("nothing"), "no such file"},
		"empty":          {rooted, in("empty"), "is empty"},
		"large":          {rooted, in("large"), "larger than 1 MiB"},
		"folder":         {rooted, in("folder"), "is not a regular file"},
		"pipe":           {rooted, in("pipe"), "is not a regular file"},
		"pipe too":       {anywhere, in("pipe"), "is not a regular file"},
		"outside":        {rooted, filepath.Join(outside, "secret"), "is outside of secrets.root"},
		"climbs":         {rooted, in("../" + filepath.Base(outside) + "/secret"), "is outside of secrets.root"},
		"link out":       {rooted, in("escape"), "is outside of secrets.root"},
		"link climbs":    {rooted, in("climb"), "is outside of secrets.root"},
		"no root":        {FileRules{Root: in("nowhere")}, in("nowhere/good"), "secrets.root"},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := tc.rules.Read(tc.path)
			if tc.want == "" {
				if err != nil || string(b) != "CANARY" {
					t.Errorf("%q, %v", b, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "CANARY") {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if name != "no root" && !strings.Contains(err.Error(), tc.path) {
				t.Errorf("%v doesn't name %s", err, tc.path)
			}
		})
	}
	t.Run("unreadable", func(t *testing.T) {
		write(t, in("locked"), "CANARY", 0o000)
		if _, err := rooted.Read(in("locked")); os.Geteuid() != 0 && (err == nil || !strings.Contains(err.Error(), "permission denied")) {
			t.Errorf("got %v", err)
		}
	})
}

// A file that is written while it is read is believed when it stands still.
func TestHalfWrittenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "password")
	write(t, path, "CANARY-1\n", 0o600)
	f := &File{Path: path}
	m, err := f.Fetch(t.Context())
	if err != nil || m.Value != "CANARY-1" || time.Until(m.Next) > pollEvery {
		t.Fatalf("%v, %v", m, err)
	}
	write(t, path, "CANA", 0o600)
	done := make(chan Material)
	go func() {
		m, err := f.Fetch(t.Context())
		if err != nil {
			t.Error(err)
		}
		done <- m
	}()
	time.Sleep(settle / 2) // the writer is slow
	write(t, path, "CANARY-2\r\n", 0o600)
	if m := <-done; m.Value != "CANARY-2" {
		t.Errorf("half a file was believed: %d bytes", len(m.Value))
	}
}

func TestReadMaterial(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	for text, want := range map[string]Material{
		"s3cret\n":                   {Value: "s3cret"},
		" s3cret \r\n":               {Value: " s3cret "},
		"a.b.c":                      {Value: "a.b.c"},
		`{"type":"service_account"}`: {Value: `{"type":"service_account"}`},
		"eyJhbGciOiJub25lIiwia2lkIjoiazEifQ.eyJpYXQiOjE4MDAwMDAwMDAsImV4cCI6MTgwMDAwMzYwMC41fQ.": {
			Value: "eyJhbGciOiJub25lIiwia2lkIjoiazEifQ.eyJpYXQiOjE4MDAwMDAwMDAsImV4cCI6MTgwMDAwMzYwMC41fQ.", Issued: at, Expires: at.Add(time.Hour), Label: "key k1",
		},
		`{"access_token":"t","expires_at":1800003600,"issued_at":"2027-01-15T08:00:00Z"}`: {Value: "t", Issued: at, Expires: at.Add(time.Hour)},
		`{"access_token":"t","expiry":"2027-01-15T10:00:00+01:00"}`:                       {Value: "t", Expires: at.Add(time.Hour)},
		`{"access_token":"t","expires_at":"soon"}`:                                        {Value: "t"},
		`{"access_token":"t","expires_at":-5}`:                                            {Value: "t"},
	} {
		m := readMaterial(text)
		if m.Value != want.Value || m.Label != want.Label || !m.Issued.Equal(want.Issued) || !m.Expires.Equal(want.Expires) {
			t.Errorf("%s: %+v (%q), want %+v", text, m, m.Value.Reveal(), want)
		}
	}
}

func FuzzReadMaterial(f *testing.F) {
	for _, s := range []string{"x", "{", `{"access_token":"t","expires_at":1e300}`, "e30.e30.x", "eyJhbGciOiJub25lIn0.eyJleHAiOjFlOTl9."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m := readMaterial(s)
		if !m.Expires.IsZero() && (m.Expires.Year() < 1970 || m.Expires.Year() > 9999) && !strings.Contains(s, "expir") {
			t.Errorf("%q ends at %v", s, m.Expires)
		}
	})
}
