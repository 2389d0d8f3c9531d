package dedupe

import (
	"cmp"
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/plant"
)

// workCall is a claim or a record: a worker asks for both all the time, and a
// transaction costs about as much as a hundred rows do.
type workCall struct {
	claim  *claimCall
	record *recordCall
}

// workBatch answers every call, in one transaction if that goes. Else each kind
// goes on by itself.
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
	if len(claims) > 0 {
		claims = l.holdBack(l.claimTwins(claims))
	}
	planted := plant.Is(plant.SkipAttempt) || plant.Is(plant.ForgetWaiting)
	if len(records) > 0 && len(claims) > 0 && !planted {
		committed, err := l.workOnce(records, claims)
		if committed {
			answerRecords(records, nil)
			records = nil
		}
		if committed && err == nil {
			l.answerClaims(claims, nil)
			claims = nil
		}
	}
	l.recordAll(records)
	l.claimAll(claims)
}

// workOnce records and claims in one transaction. What is committed with an error
// are the records alone, as far as anybody may rely on it.
func (l *Ledger) workOnce(records []*recordCall, claims []*claimCall) (committed bool, err error) {
	if err := l.stands("record"); err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(l.life, l.cfg.Deadline)
	defer cancel()
	ask, err := l.newClaiming(ctx, claims)
	if err != nil {
		return false, err
	}
	b := &pgx.Batch{}
	b.Queue(recordSQL, recordArgs(records)...)
	b.Queue(claimSQL, ask.args...)
	both := l.pool.SendBatch(ctx, b)
	_, err = both.Exec()
	if err == nil {
		var rows pgx.Rows
		if rows, err = both.Query(); err == nil {
			err = ask.read(rows)
		}
	}
	// Only now it is known to be committed.
	if err = cmp.Or(err, both.Close()); err != nil {
		return false, err
	}
	return true, l.claimed(ctx, ask)
}
