package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func taken(id string) Taken {
	return Taken{
		Channel: "email", Provider: "smtp", From: "from@example.com", To: "to@example.com", Subject: "grüße <b>",
		MessageID: id, ReceivedAt: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Size: 4, Raw: []byte("\x00\xff\r\n"), Via: "ESMTP", Conn: 1,
	}
}

func appendAll(t testing.TB, s *Store, ts ...Taken) {
	t.Helper()
	if err := s.Append(ts...); err != nil {
		t.Fatal(err)
	}
}

func TestStoreKeepsWhatItTook(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	appendAll(t, s, taken("a"), taken("b"))
	appendAll(t, s, taken("c"))
	check := func(s *Store) {
		t.Helper()
		want := []Taken{taken("a"), taken("b"), taken("c")}
		if got := all(t, s); !reflect.DeepEqual(got, want) {
			t.Fatalf("All = %+v, want %+v", got, want)
		}
		list := s.List(2, nil)
		if len(list) != 2 || list[0].N != 3 || list[0].MessageID != "c" || list[1].MessageID != "b" || list[0].Raw != nil {
			t.Fatalf("List(2) = %+v", list)
		}
		if got, ok, err := s.Get(2); err != nil || !ok || !reflect.DeepEqual(got, want[1]) {
			t.Fatalf("Get(2) = %+v, %v, %v", got, ok, err)
		}
		for _, n := range []int{-1, 0, 4} {
			if _, ok, err := s.Get(n); ok || err != nil {
				t.Fatalf("Get(%d) = %v, %v, want nothing", n, ok, err)
			}
		}
	}
	check(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Append(taken("d")); !errors.Is(err, ErrStoreClosed) {
		t.Fatalf("Append after Close: %v", err)
	}
	check(openStore(t, dir))
}

func TestStoreCutsATornLineOff(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	appendAll(t, s, taken("a"), taken("b"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, TakenFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := len(whole) / 2; cut < len(whole); cut++ { // everywhere in the second line
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		var seen int
		if err := ReadTaken(path, func(Taken) error { seen++; return nil }); err != nil || seen != 1 {
			t.Fatalf("cut at %d: ReadTaken gave %d, %v", cut, seen, err)
		}
		s, err := OpenStore(dir, StoreOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if left, err := os.ReadFile(path); err != nil || string(left) != string(whole[:len(whole)/2]) {
			t.Fatalf("cut at %d: %q is left, %v", cut, left, err)
		}
		appendAll(t, s, taken("c"))
		ts := all(t, s)
		if len(ts) != 2 || ts[0].MessageID != "a" || ts[1].MessageID != "c" || s.Count() != 2 {
			t.Fatalf("cut at %d: %+v", cut, ts)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStoreRefusesACorruptFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, TakenFile), []byte("{}\nnot json\n{}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStore(dir, StoreOptions{}); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("OpenStore: %v, want ErrCorrupt", err)
	}
}

func TestStoreTailIsBounded(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	const n = TailLimit + 1234
	var batch []Taken
	for i := 1; i <= n; i++ {
		batch = append(batch, Taken{MessageID: fmt.Sprint(i)})
	}
	appendAll(t, s, batch...)
	check := func(s *Store) {
		t.Helper()
		list := s.List(0, nil)
		if len(list) != TailLimit || s.Count() != n {
			t.Fatalf("List has %d, Count is %d", len(list), s.Count())
		}
		for i, x := range list {
			if x.N != n-i || x.MessageID != fmt.Sprint(n-i) {
				t.Fatalf("List[%d] is number %d, %q", i, x.N, x.MessageID)
			}
		}
		if x, ok, err := s.Get(n - TailLimit + 1); !ok || err != nil || x.MessageID != fmt.Sprint(n-TailLimit+1) {
			t.Fatalf("oldest of the tail: %+v, %v, %v", x, ok, err)
		}
		if _, ok, _ := s.Get(n - TailLimit); ok {
			t.Fatal("got one before the tail")
		}
	}
	check(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	check(openStore(t, dir))
}

// Lines of all lengths, up to the longest there may be, are read backwards as
// they are forwards; a longer one is told.
func TestReadingBackwards(t *testing.T) {
	var file []byte
	for i, n := range []int{1, 2, lineLimit, 700_000, 348_577, lineLimit - 1, 1, lineLimit, lineLimit, 5, 1_000_000, 48_576, 3} {
		file = append(file, bytes.Repeat([]byte{byte('a' + i)}, n-1)...)
		file = append(file, '\n')
	}
	read := func(each func(f func(int64, []byte) error) error) (lines []string) {
		t.Helper()
		if err := each(func(offset int64, line []byte) error {
			lines = append(lines, fmt.Sprint(offset, len(line), line[0]))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return lines
	}
	forwards := read(func(f func(int64, []byte) error) error { return eachLine(bytes.NewReader(file), f) })
	backwards := read(func(f func(int64, []byte) error) error {
		return eachLineBack(bytes.NewReader(file), int64(len(file)), f)
	})
	slices.Reverse(backwards)
	if len(forwards) != 13 || !slices.Equal(forwards, backwards) {
		t.Errorf("forwards %v\nbackwards %v", forwards, backwards)
	}
	long := append(bytes.Repeat([]byte("x"), lineLimit+1), '\n')
	if err := eachLineBack(bytes.NewReader(long), int64(len(long)), func(int64, []byte) error { return nil }); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a line over the limit: %v", err)
	}
}

func TestStoreManyAppendersAndAWaiter(t *testing.T) {
	s := openStore(t, t.TempDir())
	const writers, each = 16, 25
	waited := make(chan error, 1)
	go func() { waited <- s.Wait(t.Context(), writers*each) }()
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if err := s.Append(taken(fmt.Sprintf("%d-%d", w, i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	last := map[string]int{}
	seen := 0
	for _, x := range all(t, s) {
		var w string
		var i int
		if _, err := fmt.Sscanf(x.MessageID, "%1s-%d", &w, &i); err != nil {
			if _, err := fmt.Sscanf(x.MessageID, "%2s-%d", &w, &i); err != nil {
				t.Fatal(err)
			}
		}
		if i != last[w] {
			t.Fatalf("writer %s: %d came when %d was due", w, i, last[w])
		}
		last[w]++
		seen++
	}
	if seen != writers*each {
		t.Fatalf("%d stored, want %d", seen, writers*each)
	}
}

func TestStoreWaitEnds(t *testing.T) {
	s := openStore(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Wait(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Fatalf("Wait: %v", err)
	}
	waited := make(chan error, 1)
	go func() { waited <- s.Wait(t.Context(), 1) }()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; !errors.Is(err, ErrStoreClosed) {
		t.Fatalf("Wait: %v", err)
	}
}

// testFile is a file whose failures and syncs a test decides.
type testFile struct {
	*os.File
	onSync                func() error
	writeErr, truncateErr error
	writes, syncs         int
}

func (f *testFile) WriteAt(p []byte, off int64) (int, error) {
	f.writes++
	if f.writeErr != nil {
		n, _ := f.File.WriteAt(p[:len(p)/2], off) // torn, as by a full disk
		return n, f.writeErr
	}
	return f.File.WriteAt(p, off)
}

func (f *testFile) Sync() error {
	f.syncs++
	if f.onSync != nil {
		return f.onSync()
	}
	return f.File.Sync()
}

func (f *testFile) Truncate(size int64) error {
	if f.truncateErr != nil {
		return f.truncateErr
	}
	return f.File.Truncate(size)
}

// withTestFile puts a testFile into s, which must be idle.
func withTestFile(s *Store) *testFile {
	f := &testFile{File: s.file.(*os.File)}
	s.file = f
	return f
}

// Nothing is answered before its fsync has ended, and what comes meanwhile
// shares the next one.
func TestStoreAnswersAfterASharedSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, t.TempDir())
		f := withTestFile(s)
		release := make(chan struct{})
		f.onSync = func() error {
			<-release
			return nil
		}
		const others = 50
		answered := make(chan error, 1+others)
		want := func(answers, syncs int) {
			t.Helper()
			synctest.Wait()
			if len(answered) != answers || s.Count() != answers || f.syncs != syncs {
				t.Fatalf("%d answered and %d counted after %d syncs had begun, want %d after %d", len(answered), s.Count(), f.syncs, answers, syncs)
			}
		}
		go func() { answered <- s.Append(taken("first")) }()
		want(0, 1)
		for range others {
			go func() { answered <- s.Append(taken("other")) }()
		}
		want(0, 1)
		release <- struct{}{}
		want(1, 2)
		release <- struct{}{}
		want(1+others, 2)
		for range 1 + others {
			if err := <-answered; err != nil {
				t.Error(err)
			}
		}
	})
}

// What can't be written or synced is not answered, and leaves nothing behind
// that a later line would be appended to.
func TestStoreWriteFails(t *testing.T) {
	full := errors.New("no space left")
	for _, tc := range []struct {
		name string
		fail func(*testFile)
	}{
		{"write", func(f *testFile) { f.writeErr = full }},
		{"sync", func(f *testFile) { f.onSync = func() error { return full } }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir)
			f := withTestFile(s)
			appendAll(t, s, taken("a"))
			tc.fail(f)
			if err := s.Append(taken("b"), taken("c")); !errors.Is(err, full) {
				t.Fatalf("Append: %v", err)
			}
			f.writeErr, f.onSync = nil, nil
			appendAll(t, s, taken("d"))
			check := func(s *Store) {
				t.Helper()
				ts := all(t, s)
				if len(ts) != 2 || ts[0].MessageID != "a" || ts[1].MessageID != "d" || s.Count() != 2 {
					t.Fatalf("stored %+v", ts)
				}
			}
			check(s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			check(openStore(t, dir))
		})
	}
}

// A file that can't even be cut back takes nothing more.
func TestStoreIsBroken(t *testing.T) {
	s := openStore(t, t.TempDir())
	f := withTestFile(s)
	full := errors.New("no space left")
	f.writeErr, f.truncateErr = full, full
	if err := s.Append(taken("a")); !errors.Is(err, full) {
		t.Fatalf("Append: %v", err)
	}
	f.writeErr, f.truncateErr = nil, nil
	if err := s.Append(taken("b")); err == nil {
		t.Fatal("a broken store took more")
	}
	if s.Count() != 0 || f.writes != 1 {
		t.Fatalf("%d counted, %d writes", s.Count(), f.writes)
	}
}
