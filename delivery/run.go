package delivery

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// recordGrace is what Run waits for at the end beyond ShutdownGrace, so that
// what was cut off there is recorded, too.
const recordGrace = 5 * time.Second

// Run delivers until ctx ends. Then it claims nothing more, gives back what was
// not handed over, and waits for the providers' answers for ShutdownGrace and
// some seconds; heartbeats go on meanwhile. An error tells how many attempts it
// left open, of which the ledger will make doubts. Senders that wait for the
// ledger's answer even then end when it is closed: see Wait.
//
// A worker runs once.
func (w *Worker) Run(ctx context.Context) error {
	if !w.running.CompareAndSwap(false, true) {
		return errors.New("delivery: the worker has run already")
	}
	for _, l := range w.all {
		for _, t := range l.tracks {
			for range l.senders {
				w.senders.Go(newSender(w, l, t).run)
			}
		}
		for i := range routers {
			w.senders.Go(func() { newSender(w, l, nil).route(i) })
		}
		w.helpers.Go((&feeder{Worker: w, lane: l, share: feedShare}).run)
	}
	beating, endBeat := context.WithCancel(context.Background())
	w.helpers.Go(func() { w.beat(beating) })

	<-ctx.Done()
	w.endSoft()
	ended := make(chan struct{})
	go func() {
		w.senders.Wait()
		close(ended)
	}()
	endBy := func(limit time.Duration) bool {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		select {
		case <-ended:
			return true
		case <-timer.C:
			return false
		}
	}
	clean := endBy(w.cfg.ShutdownGrace)
	w.endHard()
	clean = clean || endBy(recordGrace)
	w.endFinal()
	clean = clean || endBy(time.Second) // those that only waited for final
	endBeat()
	w.helpers.Wait()
	for _, g := range w.gates {
		g.stop()
	}
	open := w.openCount()
	if err := w.watch.close(); err != nil {
		w.log.Warn("metrics could not be unregistered", "error", err)
	}
	if !clean || open > 0 {
		return fmt.Errorf("delivery: %d attempts were left open", open)
	}
	return nil
}

// Wait waits until every goroutine of a worker that has run is gone. After Run
// failed that takes the ledger's end.
func (w *Worker) Wait() {
	w.senders.Wait()
	w.helpers.Wait()
}

func (w *Worker) openCount() int {
	n := 0
	for _, l := range w.all {
		_, open := l.hand.counts()
		n += open
	}
	return n
}
