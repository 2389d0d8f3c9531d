package credential

import (
	"errors"
	"sync"
	"testing"
	"time"
)

// A hand-over that met a refused candidate meets what works the second time, and
// no other refused one.
func TestOneRefusedCandidateAHandOver(t *testing.T) {
	s := &file{}
	s.put(Material{Value: "token-good"})
	bubble(t, s, func(t *testing.T, c *Credential) {
		mustUse(t, c, "token-good").Accepted()
		for _, bad := range []Secret{"token-bad", "token-worse"} {
			s.put(Material{Value: bad})
			time.Sleep(2 * time.Second)
			mustUse(t, c, bad.Reveal()).Rejected("401")
			mustUse(t, c, "token-good").Accepted()
		}
		time.Sleep(rejectMin + time.Second) // both may be tried again
		mustUse(t, c, "token-worse").Rejected("401")
		mustUse(t, c, "token-good")
	})
}

func TestRejected(t *testing.T) {
	s := &store{life: time.Hour}
	bubble(t, s, func(t *testing.T, c *Credential) {
		mustUse(t, c, "token-1").Accepted()
		var all []Use
		for range 100 {
			all = append(all, mustUse(t, c, "token-1"))
		}
		var wg sync.WaitGroup
		for _, u := range all {
			wg.Go(func() {
				u.Rejected("401")
				if again, err := c.Use(t.Context()); err != nil || again.Value() != "token-2" {
					t.Errorf("Use = %q, %v", again.Value(), err)
				}
			})
		}
		wg.Wait()
		if n := s.count(); n != 2 {
			t.Fatalf("%d requests, want one more than before", n)
		}
		all[0].Accepted() // late news of the old one
		mustUse(t, c, "token-2").Rejected("401")
		mustUse(t, c, "token-3").Rejected("401")
		if _, err := c.Use(t.Context()); !errors.Is(err, ErrNone) {
			t.Fatalf("after new ones that are refused, too: %v", err)
		}
		mustBe(t, c, Refused, "401")
		if n := s.count(); n != 3 {
			t.Errorf("%d requests, want no more at once", n)
		}
		time.Sleep(3 * time.Second)
		mustUse(t, c, "token-4").Accepted()
		mustBe(t, c, Working, "")
	})
}

// A service that refuses what it takes again at once stops nobody for long.
func TestRefusedByMistake(t *testing.T) {
	bubble(t, Fixed("test", "token-1"), func(t *testing.T, c *Credential) {
		for range 3 {
			mustUse(t, c, "token-1").Accepted()
			u, other := mustUse(t, c, "token-1"), mustUse(t, c, "token-1")
			u.Rejected("401")
			if _, err := c.Use(t.Context()); err == nil {
				t.Error("again without a pause")
			}
			if !u.Fit() {
				t.Error("what is open is closed, and nothing can be opened")
			}
			time.Sleep(rejectOnce)
			again := mustUse(t, c, "token-1")
			if _, err := c.Use(t.Context()); err == nil {
				t.Error("two try at once")
			}
			other.Rejected("401") // of before
			again.Accepted()
			time.Sleep(time.Second)
		}
		// If it was no mistake, the long pause follows.
		mustUse(t, c, "token-1").Rejected("401")
		if _, err := c.Use(t.Context()); err == nil {
			t.Error("again without a pause")
		}
		time.Sleep(rejectOnce)
		mustUse(t, c, "token-1").Rejected("401")
		time.Sleep(rejectMin/2 - time.Millisecond)
		if _, err := c.Use(t.Context()); err == nil {
			t.Error("a third time after less than half of rejectMin")
		}
		time.Sleep(rejectMin)
		mustUse(t, c, "token-1").Accepted()
	})
}

// A password that is refused, and that nothing replaces, is tried again now and
// then, by one at a time: it may have been the service's fault.
func TestRefusedForAWhile(t *testing.T) {
	bubble(t, Fixed("test", "token-1"), func(t *testing.T, c *Credential) {
		mustUse(t, c, "token-1").Accepted()
		mustUse(t, c, "token-1").Rejected("535 the database of users is away")
		tries := 0
		for range 600 {
			time.Sleep(time.Second)
			if u, err := c.Use(t.Context()); err == nil {
				tries++
				u.Rejected("535 still")
			}
		}
		if tries < 4 || tries > 10 {
			t.Errorf("%d tries in ten minutes", tries)
		}
		mustBe(t, c, Refused, "535 still")
		time.Sleep(rejectMax)
		u := mustUse(t, c, "token-1")
		if _, err := c.Use(t.Context()); err == nil {
			t.Error("two try at once")
		}
		u.Accepted()
		mustUse(t, c, "token-1")
		mustBe(t, c, Working, "")
	})
}
