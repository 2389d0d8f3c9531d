package app

import (
	"errors"
	"fmt"
	"sync"
)

// group is goroutines that end together. The first that returns an error is
// told to failed.
type group struct {
	failed chan error
	wg     sync.WaitGroup
	mu     sync.Mutex
	errs   []error
}

func newGroup() *group { return &group{failed: make(chan error, 1)} }

func (g *group) run(name string, fn func() error) {
	g.wg.Go(func() {
		err := fn()
		if err == nil {
			return
		}
		err = fmt.Errorf("%s: %w", name, err)
		select {
		case g.failed <- err: // reported by whoever reads it
		default:
			g.mu.Lock()
			g.errs = append(g.errs, err)
			g.mu.Unlock()
		}
	})
}

// wait waits for all and returns what failed was not told, or nobody read.
func (g *group) wait() error {
	g.wg.Wait()
	select {
	case err := <-g.failed:
		g.errs = append(g.errs, err)
	default:
	}
	return errors.Join(g.errs...)
}
