package dedupe

import (
	"cmp"
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/plant"
)

// works answers a worker's claims and records. Those of all classes that come
// together are tried in one transaction, once: it costs about as much as a hundred
// rows do. If that fails they are left to batches of their own kind and class, which
// go on until it is done: so what one kind or class waits for, as a lock, is none of
// the others' business. So are claims while anything is held.
type works struct {
	all     *batcher[workCall]
	claims  [message.Campaign + 1]*batcher[*claimCall]
	records [message.Campaign + 1]*batcher[*recordCall]
}

// workCall is a claim or a record.
type workCall struct {
	claim  *claimCall
	record *recordCall
}

func (l *Ledger) newWorks() *works {
	w := &works{all: newBatcher(&l.wg, l.cfg.Batch, l.cfg.Flushers, l.workBatch)}
	for c := message.Transactional; c <= message.Campaign; c++ {
		w.claims[c] = newBatcher(&l.wg, l.cfg.Batch, 1, l.claimBatch)
		w.records[c] = newBatcher(&l.wg, l.cfg.Batch, 1, l.recordBatch)
	}
	return w
}

// stop takes no more calls; those taken are answered.
func (w *works) stop() {
	w.all.stop()
	w.all.flushing.Wait() // what these leave is to be taken yet
	for c := message.Transactional; c <= message.Campaign; c++ {
		w.claims[c].stop()
		w.records[c].stop()
	}
}

// workBatch answers what it can, and leaves the rest to its own batches.
func (l *Ledger) workBatch(calls []workCall) {
	var records []*recordCall
	var claims []*claimCall
	for _, c := range calls {
		if c.record != nil {
			records = append(records, c.record)
		} else {
			claims = append(claims, c.claim)
		}
	}
	claims = l.claimTwins(claims)
	if !plant.Is(plant.SkipAttempt) && !plant.Is(plant.ForgetWaiting) {
		if err := l.workOnce(records, claims); err != nil {
			l.log.Debug("claims and records go on by themselves", "error", err)
		}
	}
	for _, c := range records {
		if !over(c.done) {
			if err := l.works.records[c.r.Position.Lane().Class].put(l.life, c); err != nil {
				answerRecords([]*recordCall{c}, err)
			}
		}
	}
	for _, c := range claims {
		if !over(c.done) {
			if err := l.works.claims[c.item.Position.Lane().Class].put(l.life, c); err != nil {
				l.answerClaims([]*claimCall{c}, err)
			}
		}
	}
}

// over says whether a call is answered.
func over(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// workOnce records and claims in one transaction, and answers what is certain then.
func (l *Ledger) workOnce(records []*recordCall, claims []*claimCall) error {
	if err := l.stands("record"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(l.life, l.cfg.Deadline)
	defer cancel()
	if !l.free() {
		claims = nil
	}
	b := &pgx.Batch{}
	if len(records) > 0 {
		b.Queue(recordSQL, recordArgs(records)...)
	}
	var ask *claiming
	if len(claims) > 0 {
		var err error
		if ask, err = l.newClaiming(ctx, claims); err != nil {
			return err
		}
		for _, c := range claims {
			c.asked = true
		}
		b.Queue(claimSQL, ask.args...)
	}
	if b.Len() == 0 {
		return nil
	}
	both := l.pool.SendBatch(ctx, b)
	var err error
	if len(records) > 0 {
		_, err = both.Exec()
	}
	if ask != nil && err == nil {
		var rows pgx.Rows
		if rows, err = both.Query(); err == nil {
			err = ask.read(rows)
		}
	}
	// Only now it is known to be committed.
	if err = cmp.Or(err, both.Close()); err != nil {
		return err
	}
	answerRecords(records, nil)
	if ask == nil {
		return nil
	}
	if err := l.claimed(ctx, ask); err != nil {
		return err // and asked for again, by the same tokens
	}
	l.answerClaims(claims, nil)
	return nil
}
