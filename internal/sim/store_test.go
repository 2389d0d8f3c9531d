package sim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"testing"
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

// A write that fails must not be answered, nor leave anything behind that a
// later line would be appended to.
func TestStoreWriteFails(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	appendAll(t, s, taken("a"))
	good := s.file
	readOnly, err := os.Open(filepath.Join(dir, TakenFile))
	if err != nil {
		t.Fatal(err)
	}
	defer readOnly.Close()
	s.file = readOnly
	if err := s.Append(taken("b")); err == nil {
		t.Fatal("Append to a file that can't be written succeeded")
	}
	if err := s.Append(taken("c")); err == nil { // Truncate had failed, too
		t.Fatal("Append to a broken store succeeded")
	}
	s.file = good
	if ts := all(t, s); len(ts) != 1 || s.Count() != 1 {
		t.Fatalf("%d stored, counted %d", len(ts), s.Count())
	}
}
