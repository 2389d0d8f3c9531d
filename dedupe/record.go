package dedupe

import (
	"context"
	"fmt"

	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/plant"
)

type recordCall struct {
	r    message.Report
	err  error
	done chan struct{}
}

// Record implements delivery.Ledger.
func (l *Ledger) Record(ctx context.Context, r message.Report) error {
	c := &recordCall{r: r, done: make(chan struct{})}
	if err := l.works.all.put(ctx, workCall{record: c}); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return fmt.Errorf("record: %w", ctx.Err())
	}
}

// recordBatch records until it is done. A batch that fails for one row's fault is
// halved until that row stands alone.
func (l *Ledger) recordBatch(calls []*recordCall) {
	err := l.insist(func() error { return l.recordOnce(calls) })
	if err != nil && blameFor(err) == blameRow && len(calls) > 1 {
		half := len(calls) / 2
		l.recordBatch(calls[:half])
		l.recordBatch(calls[half:])
		return
	}
	answerRecords(calls, err)
}

func answerRecords(calls []*recordCall, err error) {
	for _, c := range calls {
		if err != nil {
			c.err = fmt.Errorf("record: %w", err)
		}
		close(c.done)
	}
}

func (l *Ledger) recordOnce(calls []*recordCall) error {
	if err := l.stands("record"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(l.life, l.cfg.Deadline)
	defer cancel()
	_, err := l.pool.Exec(ctx, recordSQL, recordArgs(calls)...)
	if err == nil && plant.Is(plant.ForgetWaiting) {
		ns := make([]int64, len(calls))
		for i, c := range calls {
			ns[i] = int64(c.r.Position)
		}
		_, err = l.pool.Exec(ctx, `delete from waiting where n = any ($1)`, ns)
	}
	return err
}

const recordSQL = `select record_batch($1,$2,$3,$4,$5,$6,$7,$8,$9,$10)`

func recordArgs(calls []*recordCall) []any {
	n := len(calls)
	ns, nos, kinds := make([]int64, n), make([]int16, n), make([]int16, n)
	providers, codes, replies, refs := make([]*string, n), make([]*string, n), make([]*string, n), make([]*string, n)
	waits, policies := make([]float64, n), make([]string, n)
	plain := true
	for i, c := range calls {
		r := &c.r
		ns[i], nos[i], kinds[i] = int64(r.Position), int16(r.Attempt), int16(r.Outcome)
		providers[i], codes[i], replies[i], refs[i] = nullable(r.Provider), nullable(r.Code), nullable(r.Reply), nullable(r.Reference)
		waits[i], policies[i] = max(0, r.RetryIn.Seconds()), r.Resend
		plain = plain && r.Outcome == message.Sent
	}
	return []any{ns, nos, kinds, providers, codes, replies, refs, waits, policies, plain}
}

// Hold implements delivery.Ledger.
func (l *Ledger) Hold(ctx context.Context, k message.AttemptKey, reason string) error {
	worker, err := l.processID(ctx)
	if err == nil {
		_, err = l.pool.Exec(ctx, `select hold_message($1,$2,$3,$4)`, int64(k.Position), int16(k.Attempt), worker, bounded(reason, 2000))
	}
	if err != nil {
		return unavailable("hold", err)
	}
	return nil
}
