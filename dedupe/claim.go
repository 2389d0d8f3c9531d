package dedupe

import (
	"context"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/plant"
)

type claimCall struct {
	item  message.Item
	token int64
	claim message.Claim
	err   error
	asked bool // PostgreSQL may have made the attempt
	done  chan struct{}
}

// Claim implements delivery.Ledger.
func (l *Ledger) Claim(ctx context.Context, it message.Item) (message.Claim, error) {
	c := &claimCall{item: it, token: l.tokens.Add(1), done: make(chan struct{})}
	if err := l.works.all.put(ctx, workCall{claim: c}); err != nil {
		return message.Claim{}, fmt.Errorf("claim: %w", err)
	}
	// From here on the attempt may be ours although nobody has told us, so
	// there is no leaving before the answer.
	<-c.done
	return c.claim, c.err
}

// claimBatch answers every call. What was asked before finds out first, by its token,
// what came of that: neither a hold nor a twin has a say in it any more.
func (l *Ledger) claimBatch(calls []*claimCall) {
	var asked, fresh []*claimCall
	for _, c := range calls {
		if c.asked {
			asked = append(asked, c)
		} else {
			fresh = append(fresh, c)
		}
	}
	l.claimAll(asked)
	if len(fresh) > 0 {
		l.claimAll(l.holdBack(l.claimTwins(fresh)))
	}
}

// claimAll asks until it is answered: with the same tokens, so that a claim
// which an unknown commit made is found to be its own. Only the ledger's end
// leaves an attempt to become a doubt. A batch that fails for one row's fault is
// halved until that row stands alone.
func (l *Ledger) claimAll(calls []*claimCall) {
	if len(calls) == 0 {
		return
	}
	err := l.insist(func() error { return l.claimOnce(calls) })
	if err != nil && blameFor(err) == blameRow && len(calls) > 1 {
		half := len(calls) / 2
		l.claimAll(calls[:half])
		l.claimAll(calls[half:])
		return
	}
	l.answerClaims(calls, err)
}

// answerClaims answers each as its claim says, if there is no error.
func (l *Ledger) answerClaims(calls []*claimCall, err error) {
	for _, c := range calls {
		switch {
		case err == nil:
		case isCode(err, codeNoLeave): // a leave in waiting that no outcome gave
			l.log.Error("an attempt has no leave", "position", c.item.Position, "attempt", c.item.Attempt)
			c.claim.Verdict = message.TooEarly
		default:
			c.err = fmt.Errorf("claim: %w", err)
		}
		close(c.done)
	}
}

// claimTwins answers those calls of a batch that ask for the same attempt as
// another one in it.
func (l *Ledger) claimTwins(calls []*claimCall) []*claimCall {
	seen := make(map[message.AttemptKey]struct{}, len(calls))
	rest := calls[:0]
	for _, c := range calls {
		k := message.AttemptKey{Position: c.item.Position, Attempt: c.item.Attempt}
		if _, ok := seen[k]; ok {
			c.claim.Verdict = message.Taken
			close(c.done)
			continue
		}
		seen[k] = struct{}{}
		rest = append(rest, c)
	}
	return rest
}

// insist repeats do until it succeeds, a row is at fault or the ledger ends.
func (l *Ledger) insist(do func() error) error {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.MaxElapsedTime = 20*time.Millisecond, time.Second, 0
	failing := false
	return backoff.RetryNotify(func() error {
		err := do()
		if err != nil && blameFor(err) == blameRow {
			return backoff.Permanent(err)
		}
		return err
	}, backoff.WithContext(b, l.life), func(err error, _ time.Duration) {
		if !failing { // once a batch, not once a try
			failing = true
			l.log.Warn("the ledger does not answer; asking again", "error", err)
		}
	})
}

// claimOnce asks once. A server that comes to it after it was given up makes no
// attempt any more: the worker may have had another answer by then, and wouldn't
// know of it.
func (l *Ledger) claimOnce(calls []*claimCall) error {
	if err := l.stands("claim"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(l.life, l.cfg.Deadline)
	defer cancel()
	ask, err := l.newClaiming(ctx, calls)
	if err != nil {
		return err
	}
	query := l.pool.Query
	if plant.Is(plant.SkipAttempt) {
		tx, err := l.pool.Begin(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback(ctx) }()
		query = tx.Query
	}
	rows, err := query(ctx, claimSQL, ask.args...)
	if err != nil {
		return err
	}
	if err := ask.read(rows); err != nil {
		return err
	}
	return l.claimed(ctx, ask)
}

const claimSQL = `select ord, verdict, coalesce(tenant, 0), coalesce(test, false), coalesce(recipient, ''), coalesce(expires_at, 'epoch'), coalesce(life, 0)
	from (select coalesce(clock_timestamp() <= $6, true) as in_time offset 0) x
	cross join lateral claim_batch(case when in_time then $1::bigint[] end, case when in_time then $2::smallint[] end,
		case when in_time then $3::bytea[] end, case when in_time then $4::bigint[] end, $5)`

// claiming is one question for claims.
type claiming struct {
	calls    []*claimCall
	until    *time.Time // as in claimOnce, by PostgreSQL's clock; nil where that isn't known
	args     []any      // of claimSQL
	answered int
}

func (l *Ledger) newClaiming(ctx context.Context, calls []*claimCall) (*claiming, error) {
	until := l.until(ctx)
	worker, err := l.processID(ctx)
	if err != nil {
		return nil, err
	}
	ns, nos := make([]int64, len(calls)), make([]int16, len(calls))
	ids, tokens := make([][]byte, len(calls)), make([]int64, len(calls))
	for i, c := range calls {
		ns[i], nos[i] = int64(c.item.Position), int16(c.item.Attempt)
		ids[i], tokens[i] = c.item.ID[:24], c.token
	}
	return &claiming{calls: calls, until: until, args: []any{ns, nos, ids, tokens, worker, until}}, nil
}

// read fills in the answers.
func (a *claiming) read(rows pgx.Rows) error {
	var ord int32
	var verdict int16
	var life float64
	var c message.Claim
	_, err := pgx.ForEachRow(rows, []any{&ord, &verdict, &c.Tenant, &c.Test, &c.Recipient, &c.ExpiresAt, &life}, func() error {
		c.Verdict = message.ClaimVerdict(verdict)
		c.Life = time.Duration(life * float64(time.Second))
		a.calls[ord-1].claim = c
		a.answered++
		return nil
	})
	return err
}

// claimed looks at the answers, which are committed, and adds what the ledger is
// asked for besides. With an error they are no answers, and are asked for again.
func (l *Ledger) claimed(ctx context.Context, a *claiming) error {
	calls := a.calls
	if a.answered == 0 && a.until != nil {
		return fmt.Errorf("PostgreSQL came to it too late, by its clock as this process knows it: %s", a.until.Format(time.RFC3339Nano))
	}
	if a.answered != len(calls) {
		return fmt.Errorf("the ledger answered %d of %d claims", a.answered, len(calls))
	}
	if err := l.addBasis(ctx, calls); err != nil {
		return err
	}
	for _, c := range calls {
		if c.claim.Verdict != message.Stranger {
			continue
		}
		// Answered only once it is certain that this is no rollback.
		switch rolled, err := l.proven(ctx, c.item.Position); {
		case err != nil:
			return err
		case rolled:
			return l.stands("claim")
		}
	}
	for _, c := range calls {
		if c.claim.Verdict == message.Claimed && c.item.Attempt == 1 {
			l.counts.attempted(c.item.Position.Lane(), 1)
			l.committed(c.item.Position.Submission())
		}
	}
	return nil
}

// addBasis reads what claimed attempts after the first rest on. The claims are
// committed already; if this fails, they are asked for again.
func (l *Ledger) addBasis(ctx context.Context, calls []*claimCall) error {
	var ns []int64
	var nos []int16
	later := make(map[message.Position]*claimCall)
	for _, c := range calls {
		if c.claim.Verdict == message.Claimed && c.item.Attempt > 1 {
			ns, nos = append(ns, int64(c.item.Position)), append(nos, int16(c.item.Attempt))
			later[c.item.Position] = c
		}
	}
	if len(ns) == 0 {
		return nil
	}
	rows, err := l.pool.Query(ctx, `
		select a.n, coalesce(d.by, ''), coalesce(extract(epoch from clock_timestamp() - f.at), 0)::float8
		from unnest($1::bigint[], $2::smallint[]) as a(n, no)
		left join lateral (select d.by from decision d where d.n = a.n and d.no < a.no order by d.no desc limit 1) d on true
		left join lateral (select t.at from attempt t where t.n = a.n order by t.no limit 1) f on true`, ns, nos)
	if err != nil {
		return err
	}
	var n int64
	var by string
	var age float64
	_, err = pgx.ForEachRow(rows, []any{&n, &by, &age}, func() error {
		c := &later[message.Position(n)].claim
		c.Basis, c.FirstAge = by, time.Duration(age*float64(time.Second))
		return nil
	})
	return err
}
