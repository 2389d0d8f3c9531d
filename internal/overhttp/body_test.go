package overhttp

import (
	"errors"
	"io"
	"sync"
	"testing"
	"time"
)

func TestBody(t *testing.T) {
	begin := time.Now()
	at := func(d time.Duration) func() time.Time { return func() time.Time { return begin.Add(d) } }

	read := newBody([]byte("content"), begin, at(handOver))
	if got, err := io.ReadAll(read); string(got) != "content" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	if read.seal() {
		t.Error("sealed after it was read")
	}

	sealed := newBody([]byte("content"), begin, at(0))
	for range 2 {
		if !sealed.seal() {
			t.Error("not sealed though nobody read it")
		}
	}
	if got, err := io.ReadAll(sealed); len(got) != 0 || !errors.Is(err, errSealed) {
		t.Errorf("sealed, but read %q, %v", got, err)
	}

	stale := newBody([]byte("content"), begin, at(handOver+1))
	if got, err := io.ReadAll(stale); len(got) != 0 || !errors.Is(err, errStale) {
		t.Errorf("stale, but read %q, %v", got, err)
	}
	if !stale.seal() {
		t.Error("stale, but not sealed")
	}

	// One that has begun in time may take longer.
	now := begin
	slow := newBody([]byte("content"), begin, func() time.Time { return now })
	if n, err := slow.Read(make([]byte, 3)); n != 3 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
	now = begin.Add(time.Hour)
	if got, err := io.ReadAll(slow); string(got) != "tent" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}

// Whoever comes first, a byte that was read is never said not to have been.
func TestSealRacesRead(t *testing.T) {
	for range 2000 {
		b := newBody([]byte("content"), time.Now(), time.Now)
		var n int
		var sealed bool
		var wg sync.WaitGroup
		wg.Go(func() { n, _ = b.Read(make([]byte, 16)) })
		wg.Go(func() { sealed = b.seal() })
		wg.Wait()
		if sealed == (n > 0) {
			t.Fatalf("sealed %v, %d bytes read", sealed, n)
		}
	}
}

// passed takes whichever clock says more.
func TestPassed(t *testing.T) {
	begin := time.Now()
	if got := passed(begin, begin.Add(time.Minute)); got != time.Minute {
		t.Errorf("a minute is %v", got)
	}
	// The machine slept: the monotonic clock of the later reading is behind its wall clock.
	if got := passed(begin, begin.Round(0).Add(time.Hour)); got != time.Hour {
		t.Errorf("an hour's sleep is %v", got)
	}
}
