package dedupe

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/message"
)

// acceptTries bounds how often a batch that lost a race is tried.
const acceptTries = 4

// errUnsure fails every batch that was under way when a commit, perhaps
// another's, did not wait for its standby.
var errUnsure = errors.New("the commit did not wait for its standby")

type acceptCall struct {
	s       *message.Submission
	entry   *entry // what the journal adds; nil at the door
	stream  int64
	receipt message.Receipt
	err     error
	done    chan struct{}
}

func (c *acceptCall) fail(err error) {
	c.err = err
	close(c.done)
}

func noRows(err error) bool { return errors.Is(err, pgx.ErrNoRows) }

// Accept implements ingest.Acceptor.
func (l *Ledger) Accept(ctx context.Context, s *message.Submission) (message.Receipt, error) {
	return l.submit(ctx, l.accepts, &acceptCall{s: s, done: make(chan struct{})})
}

func (l *Ledger) submit(ctx context.Context, in *batcher[*acceptCall], c *acceptCall) (r message.Receipt, err error) {
	c.stream, err = l.streamID(ctx, streamName{c.s.Tenant, c.s.Stream})
	if err != nil {
		if c.entry != nil && blameFor(err) == blameRow { // a record may name a tenant that never was
			return r, rowError("accept", err)
		}
		return r, unavailable("accept", err)
	}
	if err := in.put(ctx, c); err != nil {
		return message.Receipt{}, unavailable("accept", err)
	}
	select {
	case <-c.done:
		return c.receipt, c.err
	case <-ctx.Done():
		return message.Receipt{}, unavailable("accept", ctx.Err())
	}
}

// acceptBatch answers every call. Of several with one key the first goes into
// the ledger; the others are answered by what it then holds.
func (l *Ledger) acceptBatch(calls []*acceptCall) {
	firsts := make([]*acceptCall, 0, len(calls))
	seen := make(map[message.KeyHash]struct{}, len(calls))
	var repeats []*acceptCall
	for _, c := range calls {
		if _, ok := seen[c.s.Key]; ok {
			repeats = append(repeats, c)
			continue
		}
		seen[c.s.Key] = struct{}{}
		firsts = append(firsts, c)
	}
	repeats = append(repeats, l.enter(firsts)...)
	l.answerRepeats(repeats)
}

// enter puts calls into the ledger and answers those that went in or failed.
// It returns those whose key was known. A batch that fails for one row's fault
// is halved until that row stands alone.
func (l *Ledger) enter(calls []*acceptCall) (known []*acceptCall) {
	var err error
	for range acceptTries {
		known, err = l.enterOnce(calls)
		if err == nil || blameFor(err) != blameRace {
			break
		}
	}
	switch {
	case err == nil:
		return known
	case blameFor(err) == blameRow && len(calls) > 1:
		half := len(calls) / 2
		return append(l.enter(calls[:half]), l.enter(calls[half:])...)
	case blameFor(err) == blameRow:
		err = rowError("accept", err)
		if errors.Is(err, ErrNumbering) { // the guard tells, once
			l.guard.suspect(calls[0].stream)
		}
		calls[0].fail(err)
	default:
		err = unavailable("accept", err)
		for _, c := range calls {
			c.fail(err)
		}
	}
	return nil
}

type acceptArrays struct {
	keys       [][16]byte
	prints     [][]byte
	lanes      []int16
	tenants    []int32
	streams    []int64
	counts     []int16
	bodies     [][]byte
	traces     []*string
	tests      []bool
	expiries   []time.Time
	sendAts    []*time.Time
	owners     []int32
	indexes    []int16
	recipients []string
	supersedes [][]byte // nil where no submission has a key
}

func (a *acceptArrays) add(c *acceptCall) {
	s := c.s
	a.keys = append(a.keys, s.Key)
	a.prints = append(a.prints, s.Print[:])
	a.lanes = append(a.lanes, int16(s.Lane.Code()))
	a.tenants = append(a.tenants, s.Tenant)
	a.streams = append(a.streams, c.stream)
	a.counts = append(a.counts, int16(len(s.Recipients)))
	a.bodies = append(a.bodies, s.Content)
	a.traces = append(a.traces, nullable(s.Trace))
	a.tests = append(a.tests, s.Test)
	a.expiries = append(a.expiries, s.ExpiresAt)
	var sendAt *time.Time
	if !s.SendAt.IsZero() {
		sendAt = &s.SendAt
	}
	a.sendAts = append(a.sendAts, sendAt)
	for i, r := range s.Recipients {
		a.owners = append(a.owners, int32(len(a.keys)))
		a.indexes = append(a.indexes, int16(i))
		a.recipients = append(a.recipients, r)
	}
}

// supersede notes the supersede key of call i of n; what a person has yet to
// release comes in under none.
func (a *acceptArrays) supersede(i, n int, c *acceptCall) {
	if c.s.Supersede == "" || c.entry != nil && c.entry.held {
		return
	}
	if a.supersedes == nil {
		a.supersedes = make([][]byte, n)
	}
	h := message.HashSupersede(c.s.Tenant, c.s.Test, c.s.Supersede)
	a.supersedes[i] = h[:]
}

func nullable(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func (l *Ledger) enterOnce(calls []*acceptCall) (known []*acceptCall, err error) {
	var a acceptArrays
	for i, c := range calls {
		a.add(c)
		a.supersede(i, len(calls), c)
	}
	ctx, cancel := context.WithTimeout(l.life, l.cfg.Deadline)
	defer cancel()
	unsure := l.unsure.Load()
	rows, err := l.acceptRows(ctx, &a, calls)
	if err != nil {
		return nil, err
	}
	type entered struct {
		ord   int32
		first int64
		sub   int64
		waits bool
	}
	fresh := make([]entered, 0, len(calls))
	var e entered
	if _, err := pgx.ForEachRow(rows, []any{&e.ord, &e.sub, &e.first, &e.waits}, func() error {
		fresh = append(fresh, e)
		return nil
	}); err != nil {
		return nil, err
	}
	if l.unsure.Load() != unsure {
		return nil, errUnsure
	}
	// Only now is the commit known.
	isFresh := make([]bool, len(calls))
	for _, e := range fresh {
		c := calls[e.ord-1]
		isFresh[e.ord-1] = true
		c.receipt = message.Receipt{Submission: e.sub, Sequence: e.first, Waiting: e.waits}
		l.counts.accepted(c.s.Lane, len(c.s.Recipients))
		close(c.done)
	}
	for i, c := range calls {
		if !isFresh[i] {
			known = append(known, c)
		}
	}
	return known, nil
}

func (l *Ledger) acceptRows(ctx context.Context, a *acceptArrays, calls []*acceptCall) (pgx.Rows, error) {
	args := []any{
		a.keys, a.prints, a.lanes, a.tenants, a.streams, a.counts, a.bodies, a.traces, a.tests, a.expiries, a.sendAts,
		a.owners, a.indexes, a.recipients, a.supersedes,
	}
	if calls[0].entry == nil { // a batch is the door's or the journal's
		return l.pool.Query(ctx, `select ord, submission, first, waits from accept_batch($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15)`, args...)
	}
	accepteds, ids := make([]time.Time, len(calls)), make([][]byte, len(calls))
	for i, c := range calls {
		accepteds[i] = c.entry.acceptedAt
		if c.entry.held {
			ids[i] = c.entry.id[:24]
		}
	}
	return l.pool.Query(ctx, `select ord, submission, first, waits from enter_batch($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17)`,
		append(args, accepteds, ids)...)
}

// answerRepeats answers calls whose key is in the ledger, in a statement of its
// own: the loser of a race sees no row in the one that it lost.
func (l *Ledger) answerRepeats(calls []*acceptCall) {
	if len(calls) == 0 {
		return
	}
	keys := make([][16]byte, len(calls))
	for i, c := range calls {
		keys[i] = c.s.Key
	}
	ctx, cancel := context.WithTimeout(l.life, l.cfg.Deadline)
	defer cancel()
	type known struct {
		submission int64
		print      []byte
		first      *int64
		waits      bool
	}
	found := make(map[message.KeyHash]known, len(calls))
	rows, err := l.pool.Query(ctx, `
		select i.key, i.submission, i.print, m.seq, exists (select from waiting w where w.n = m.n)
		from identity i
		left join message m on m.n = (i.lane::bigint << 57) | (i.submission << 6)
		where i.key = any ($1::uuid[])`, keys)
	if err == nil {
		var key [16]byte
		var k known
		_, err = pgx.ForEachRow(rows, []any{&key, &k.submission, &k.print, &k.first, &k.waits}, func() error {
			found[key] = k
			k.print, k.first = nil, nil
			return nil
		})
	}
	for _, c := range calls {
		k, ok := found[c.s.Key]
		switch {
		case err != nil:
			c.err = unavailable("accept", err)
		case !ok:
			// The first one failed, or its batch was rolled back.
			c.err = fmt.Errorf("accept: %w: its key is neither known nor new", message.ErrUnavailable)
		case message.Fingerprint(k.print) != c.s.Print:
			c.err = fmt.Errorf("accept: %w", message.ErrKeyReused)
		default:
			c.receipt = message.Receipt{Submission: k.submission, Replayed: true, Waiting: k.waits}
			if k.first != nil {
				c.receipt.Sequence = *k.first
			}
		}
		close(c.done)
	}
}
