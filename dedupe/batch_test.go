package dedupe

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A lone call goes at once; what comes thick shares its flushes, which begin a
// spacing apart.
func TestBatchesGatherWhatComesThick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type flush struct {
			size int
			at   time.Duration
		}
		const most, work = 10, 5 * time.Millisecond
		var (
			wg    sync.WaitGroup
			mu    sync.Mutex
			began time.Time
			got   []flush
		)
		b := newBatcher(&wg, most, 2, func(calls []int) {
			mu.Lock()
			got = append(got, flush{len(calls), time.Since(began)})
			mu.Unlock()
			time.Sleep(work)
		})
		check := func(what string, want ...flush) {
			t.Helper()
			time.Sleep(time.Minute)
			if !slices.Equal(got, want) {
				t.Errorf("%s: %v, want %v", what, got, want)
			}
			got = nil
		}
		put := func(n int, apart time.Duration) {
			t.Helper()
			began = time.Now()
			for i := range n {
				if err := b.put(t.Context(), i); err != nil {
					t.Fatal(err)
				}
				time.Sleep(apart)
			}
		}
		put(3, time.Second)
		check("one a second", flush{1, 0}, flush{1, time.Second}, flush{1, 2 * time.Second})
		put(6, 3*time.Millisecond)
		check("one every 3 ms", flush{1, 0}, flush{2, spacing}, flush{3, 2 * spacing})
		b.stop()
		wg.Wait()
	})
}
