package credential

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var testSafeKey = []byte("0123456789abcdef0123456789CANARY")

func openSafe(t *testing.T, dir string, key []byte) *Safe {
	t.Helper()
	s, err := OpenSafe(dir, key, slog.New(slog.NewTextHandler(logs{t}, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSafe(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "safe")
	s := openSafe(t, dir, testSafeKey)
	place := slot{s, "../relay/x", "generation", "there"}
	var got string
	if err := place.load(&got); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty one: %v", err)
	}
	if err := place.save("CANARY"); err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(place.path())
	if err != nil {
		t.Fatal(err)
	}
	if err := place.save("CANARY"); err != nil {
		t.Fatal(err)
	}
	second, err := os.ReadFile(place.path())
	if err != nil || bytes.Equal(first[:12], second[:12]) || bytes.Contains(second, []byte("CANARY")) {
		t.Errorf("%v; the same nonce twice, or the text as it is: %q %q", err, first, second)
	}
	if err := place.load(&got); err != nil || got != "CANARY" {
		t.Errorf("read %q, %v", got, err)
	}
	for path, want := range map[string]fs.FileMode{dir: 0o700, place.path(): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want || filepath.Dir(path) != dir && path != dir {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) != 2 {
		t.Errorf("%v, %v", all, err)
	}

	// Nothing stands for another, and nothing that was changed is believed.
	refused := func(what string, p slot, b []byte) {
		t.Helper()
		if err := os.WriteFile(p.path(), b, 0o600); err != nil {
			t.Fatal(err)
		}
		var got string
		if err := p.load(&got); err == nil || got != "" || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: read %q, %v", what, got, err)
		}
	}
	refused("another name", slot{s, "other", "generation", "there"}, second)
	refused("another purpose", slot{s, "../relay/x", "refresh", "there"}, second)
	refused("another source", slot{s, "../relay/x", "generation", "elsewhere"}, second)
	other := openSafe(t, filepath.Join(dir, "other"), []byte(strings.Repeat("k", 32)))
	refused("another key", slot{other, "../relay/x", "generation", "there"}, second)
	if _, err := OpenSafe(dir, []byte(strings.Repeat("k", 32)), nil); !errors.Is(err, ErrOtherKey) {
		t.Errorf("opened with another key: %v", err)
	}
	openSafe(t, dir, testSafeKey)
	for i := range second {
		b := bytes.Clone(second)
		b[i] ^= 1
		refused(fmt.Sprintf("byte %d", i), place, b)
		refused(fmt.Sprintf("%d bytes", i), place, second[:i])
	}
	refused("too large", place, make([]byte, maxFile+1))
	if err := place.save(strings.Repeat("x", maxFile)); err == nil {
		t.Error("what can't be read is kept")
	}
	if text := fmt.Sprintf("%v %+v %#v", s, s, s); strings.Contains(text, "CANARY") {
		t.Errorf("shows its key: %s", text)
	}
}

func TestOpenSafeRefuses(t *testing.T) {
	open, plain := filepath.Join(t.TempDir(), "open"), filepath.Join(t.TempDir(), "plain")
	for _, err := range []error{os.Mkdir(open, 0o700), os.Chmod(open, 0o755), os.WriteFile(plain, nil, 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := OpenSafe(open, testSafeKey, nil); err == nil || !strings.Contains(err.Error(), "by anyone on the machine (mode 0755)") {
		t.Errorf("a folder that all may read: %v", err)
	}
	if _, err := OpenSafe(plain, testSafeKey, nil); err == nil {
		t.Error("a file is a folder")
	}
	if _, err := OpenSafe(filepath.Join(t.TempDir(), "safe"), testSafeKey[:16], nil); err == nil || strings.Contains(err.Error(), "0123") {
		t.Errorf("half a key: %v", err)
	}
}

func TestParseKey(t *testing.T) {
	for _, text := range []string{string(testSafeKey), base64.StdEncoding.EncodeToString(testSafeKey), base64.RawURLEncoding.EncodeToString(testSafeKey)} {
		if b, err := ParseKey(text); err != nil || !bytes.Equal(b, testSafeKey) {
			t.Errorf("%q: %v", b, err)
		}
	}
	for _, text := range []string{"", "CANARY", string(testSafeKey) + "x", base64.StdEncoding.EncodeToString(testSafeKey[1:])} {
		if _, err := ParseKey(text); err == nil || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// far is a store that may be away.
type far struct {
	store
	where string
}

func (f *far) identity() string { return f.where }

func (f *far) Fetch(ctx context.Context) (Material, error) {
	m, err := f.store.Fetch(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.life == 0 {
		m.Next = time.Now().Add(time.Second)
	}
	return m, err
}

// said is what several processes log.
type said struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// process is one start of a process that signs in with f.
func process(t *testing.T, s *Safe, f Source, logged *said) *Credential {
	t.Helper()
	c := New(Config{Name: "relay", Source: f, Safe: s, Check: func(value string) error {
		if strings.Contains(value, "unfit") {
			return errors.New("it is no token: " + value)
		}
		return nil
	}, Logger: slog.New(slog.NewTextHandler(logged, nil))})
	t.Cleanup(c.Close)
	return c
}

// keepOne is a process that had a generation accepted, and has ended.
func keepOne(t *testing.T, s *Safe, m Material) {
	t.Helper()
	f := &far{}
	f.put(m)
	c := process(t, s, f, &said{})
	mustUse(t, c, m.Value.Reveal()).Accepted()
	c.Close()
}

// A process that starts while the source is away goes on with what the last one
// had, until the source has something newer that works.
func TestKeptOverARestart(t *testing.T) {
	s := openSafe(t, filepath.Join(t.TempDir(), "safe"), testSafeKey)
	synctest.Test(t, func(t *testing.T) {
		keepOne(t, s, Material{Value: "token-1", Label: "version 1", Issued: time.Now(), Expires: time.Now().Add(time.Hour)})
		time.Sleep(time.Minute)
		var logged said
		f := &far{}
		f.err = errDown
		c := process(t, s, f, &logged)
		if st := c.Status(); len(st.Generations) != 1 || !st.Generations[0].Kept || st.Generations[0].State != "spare" || time.Since(st.Generations[0].Got) < time.Minute {
			t.Errorf("%+v", st)
		}
		mustUse(t, c, "token-1").Accepted() // the first to ask has it, though the source fails
		st := mustBe(t, c, Failing, "connection refused; the last one, kept on disk, is in use, until ")
		if g := st.Generations[0]; !g.Kept || g.State != "current" || g.Label != "version 1" {
			t.Errorf("%+v", g)
		}

		// What is older or refused doesn't displace it either.
		f.put(Material{Value: "token-0", Issued: time.Now().Add(-time.Hour), Expires: time.Now().Add(time.Hour)})
		time.Sleep(time.Minute)
		mustUse(t, c, "token-1").Accepted()
		mustBe(t, c, FellBack, "older")
		f.put(Material{Value: "token-bad", Issued: time.Now(), Expires: time.Now().Add(time.Hour)})
		time.Sleep(time.Minute)
		mustUse(t, c, "token-bad").Rejected("535 no")
		mustUse(t, c, "token-1").Accepted()
		f.put(Material{Value: "token-2", Issued: time.Now(), Expires: time.Now().Add(time.Hour)})
		time.Sleep(time.Minute)
		canary := mustUse(t, c, "token-2")
		mustUse(t, c, "token-1").Accepted()
		canary.Accepted()
		mustUse(t, c, "token-2")
		if st := mustBe(t, c, Working, ""); st.Generations[0].Kept {
			t.Errorf("%+v", st.Generations[0])
		}
		synctest.Wait()

		f.set(func(s *store) { s.err = errDown })
		next := process(t, s, f, &logged)
		mustUse(t, next, "token-2").Accepted()
		time.Sleep(time.Hour)
		if u, err := next.Use(t.Context()); err == nil {
			t.Errorf("%v past its end", u)
		}
		if text := logged.String(); strings.Contains(text, "token-") {
			t.Errorf("logged: %s", text)
		}
	})
}

// With the source there, what is kept is for when the newest is no good.
func TestKeptIsTheLastResort(t *testing.T) {
	s := openSafe(t, filepath.Join(t.TempDir(), "safe"), testSafeKey)
	synctest.Test(t, func(t *testing.T) {
		keepOne(t, s, Material{Value: "token-1"})
		f := &far{}
		f.put(Material{Value: "token-2"})
		c := process(t, s, f, &said{})
		mustUse(t, c, "token-2").Rejected("535 no")
		mustUse(t, c, "token-1").Accepted()
		mustBe(t, c, FellBack, "535 no; the last good one, kept on disk, is in use")

		// The source has the kept one itself: it is one as any.
		again := process(t, s, f, &said{})
		f.put(Material{Value: "token-1", Label: "again"})
		time.Sleep(2 * time.Second)
		mustUse(t, again, "token-1").Accepted()
		if st := mustBe(t, again, Working, ""); st.Generations[0].Kept || st.Generations[0].State != "current" {
			t.Errorf("%+v", st.Generations[0])
		}
		for name, bad := range map[string]Material{"expired": {Value: "token-3", Expires: time.Now()}, "unfit": {Value: "unfit"}} {
			f.put(bad)
			u, err := process(t, s, f, &said{}).Use(t.Context())
			if err != nil || u.Value() != "token-1" {
				t.Errorf("%s: %v, %v", name, u, err)
			}
		}
	})
}

// What is no good is left alone, with a line that names the credential.
func TestKeptIsIgnored(t *testing.T) {
	good := func() Material { return Material{Value: "token-1", Expires: time.Now().Add(time.Hour)} }
	for name, tc := range map[string]struct {
		m      func() Material
		change func(t *testing.T, s *Safe, path string) (next *Safe, where string)
		says   string
	}{
		"nothing": {m: good, change: func(t *testing.T, s *Safe, path string) (*Safe, string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			return s, ""
		}},
		"expired":        {m: func() Material { return Material{Value: "token-1", Expires: time.Now().Add(time.Minute)} }, says: "it expired at"},
		"another source": {m: good, change: func(_ *testing.T, s *Safe, _ string) (*Safe, string) { return s, "elsewhere" }, says: "was changed, or kept under another key or by another configuration"},
		"tampered": {m: good, change: func(t *testing.T, s *Safe, path string) (*Safe, string) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b[len(b)-1]++
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			return s, ""
		}, says: "was changed"},
		"unfit": {m: good, change: func(t *testing.T, s *Safe, _ string) (*Safe, string) {
			if err := (slot{s, "relay", "generation", ""}).save(kept{Value: "unfit CANARY"}); err != nil {
				t.Fatal(err)
			}
			return s, ""
		}, says: "it is no token: [secret]"},
		"not JSON": {m: good, change: func(t *testing.T, s *Safe, _ string) (*Safe, string) {
			if err := (slot{s, "relay", "generation", ""}).save("CANARY"); err != nil {
				t.Fatal(err)
			}
			return s, ""
		}, says: "can't be read"},
		"a folder": {m: good, change: func(t *testing.T, s *Safe, path string) (*Safe, string) {
			for _, err := range []error{os.Remove(path), os.Mkdir(path, 0o700)} {
				if err != nil {
					t.Fatal(err)
				}
			}
			return s, ""
		}, says: "not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "safe")
			s := openSafe(t, dir, testSafeKey)
			synctest.Test(t, func(t *testing.T) {
				keepOne(t, s, tc.m())
				time.Sleep(time.Minute)
				f := &far{}
				if tc.change != nil {
					s, f.where = tc.change(t, s, filepath.Join(dir, "relay.generation"))
				}
				f.err = errDown
				var logged said
				c := process(t, s, f, &logged)
				if u, err := c.Use(t.Context()); !errors.Is(err, ErrNone) {
					t.Errorf("used %v, %v", u, err)
				}
				mustBe(t, c, Missing, "connection refused")
				text := logged.String()
				if strings.Contains(text, "token-") || strings.Contains(text, "CANARY") {
					t.Errorf("logged: %s", text)
				}
				if says := "kept generation is not used"; tc.says == "" && strings.Contains(text, says) || tc.says != "" &&
					(!strings.Contains(text, says) || !strings.Contains(text, "credential=relay") || !strings.Contains(text, tc.says)) {
					t.Errorf("logged: %s; want %s", text, tc.says)
				}
			})
		})
	}
}

// Only what a service has accepted is kept, of sources that may be away; and
// never instead of a newer one of another process.
func TestWhatIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "safe")
	s := openSafe(t, dir, testSafeKey)
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		material := func(n int) Material {
			return Material{Value: Secret(fmt.Sprintf("token-%d", n)), Issued: now.Add(time.Duration(n) * time.Second), Expires: now.Add(time.Hour)}
		}
		onDisk := func() string {
			t.Helper()
			synctest.Wait()
			var k kept
			if err := (slot{s, "relay", "generation", ""}).load(&k); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			return k.Value
		}
		local := process(t, s, Fixed("test", "token-0"), &said{})
		mustUse(t, local, "token-0").Accepted()
		f := &far{}
		f.put(material(1))
		c := process(t, s, f, &said{})
		u := mustUse(t, c, "token-1")
		if got := onDisk(); got != "" {
			t.Errorf("kept %s, which nobody accepted", got)
		}
		u.Accepted()
		if got := onDisk(); got != "token-1" {
			t.Errorf("kept %s", got)
		}
		f.put(material(3))
		time.Sleep(2 * time.Second)
		mustUse(t, c, "token-3").Rejected("401")
		if got := onDisk(); got != "token-1" {
			t.Errorf("kept %s", got)
		}
		keepOne(t, s, material(5)) // another process
		f.put(material(4))
		time.Sleep(2 * time.Second)
		mustUse(t, c, "token-4").Accepted()
		if got := onDisk(); got != "token-5" {
			t.Errorf("kept %s, in place of a newer one", got)
		}
		// Unless that one is known to be refused.
		f.put(material(5))
		time.Sleep(2 * time.Second)
		mustUse(t, c, "token-5").Rejected("401")
		f.put(Material{Value: "token-4b", Issued: now.Add(4500 * time.Millisecond), Expires: now.Add(2 * time.Hour)})
		time.Sleep(2 * time.Second)
		mustUse(t, c, "token-4b").Accepted()
		if got := onDisk(); got != "token-4b" {
			t.Errorf("kept %s", got)
		}

		// A disk that fails stops nobody, and is tried again.
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		f.put(material(7))
		time.Sleep(2 * time.Second)
		mustUse(t, c, "token-7").Accepted()
		synctest.Wait()
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if got := onDisk(); got != "token-7" {
			t.Errorf("kept %s once the folder was there again", got)
		}
	})
}
