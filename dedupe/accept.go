package dedupe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/plant"
)

// acceptTries bounds how often a batch that lost a race is tried.
const acceptTries = 4

// errUnsure fails every batch that was under way when a commit, perhaps
// another's, did not wait for its standby.
var errUnsure = errors.New("the commit did not wait for its standby")

type acceptCall struct {
	s       *message.Submission
	entry   *entry    // what the journal adds; nil at the door
	came    time.Time // to the door
	stream  int64
	ends    bool // as soon as it is in, since it repeats another
	told    bool // it is answered
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
	return l.submit(ctx, l.accepts, &acceptCall{s: s, came: time.Now(), done: make(chan struct{})})
}

func (l *Ledger) submit(ctx context.Context, in *batcher[*acceptCall], c *acceptCall) (r message.Receipt, err error) {
	if err := l.stands("accept"); err != nil {
		return r, err
	}
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
	unsure := l.unsure.Load()
	firsts := make([]*acceptCall, 0, len(calls))
	seen := make(map[message.KeyHash]struct{}, len(calls))
	var repeats, shielded []*acceptCall
	for _, c := range earliestFirst(calls) {
		if _, ok := seen[c.s.Key]; ok {
			repeats = append(repeats, c)
			continue
		}
		seen[c.s.Key] = struct{}{}
		if c.shielded() {
			shielded = append(shielded, c)
		} else {
			firsts = append(firsts, c)
		}
	}
	if len(firsts) > 0 {
		repeats = append(repeats, l.enter(firsts)...)
	}
	l.answerRepeats(append(repeats, l.enterShielded(shielded)...), unsure)
}

// earliestFirst sorts what comes out of the journals by its time: one that is
// there twice is entered with its first.
func earliestFirst(calls []*acceptCall) []*acceptCall {
	if calls[0].entry != nil { // then all have one
		slices.SortStableFunc(calls, func(a, b *acceptCall) int { return a.entry.acceptedAt.Compare(b.entry.acceptedAt) })
	}
	return calls
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
	if err != nil || len(known) < len(calls) { // repeats need no room
		l.room(err)
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
	supersedes [][]byte     // nil where no submission has a key
	accepteds  []*time.Time // at the latest; nil, in it or as a whole, is now
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
	expires := s.ExpiresAt
	if plant.Is(plant.IgnoreExpiry) {
		expires = expires.AddDate(1, 0, 0)
	}
	a.expiries = append(a.expiries, expires)
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
// release comes in under none, and so does what ends at once.
func (a *acceptArrays) supersede(i, n int, c *acceptCall) {
	if c.s.Supersede == "" || c.ends || c.entry != nil && c.entry.held {
		return
	}
	if a.supersedes == nil {
		a.supersedes = make([][]byte, n)
	}
	h := message.HashSupersede(c.s.Tenant, c.s.Test, c.s.Supersede)
	a.supersedes[i] = h[:]
}

// late says when call i of n was accepted, should PostgreSQL come to it only much
// later: when it has been answered out of the journal meanwhile, and others under
// its supersede key came after it.
func (a *acceptArrays) late(i, n int, c *acceptCall, clock *serverClock) {
	if a.supersedes == nil || a.supersedes[i] == nil || c.entry != nil {
		return
	}
	if came, known := clock.at(c.came); known {
		if a.accepteds == nil {
			a.accepteds = make([]*time.Time, n)
		}
		at := came.Add(message.AcceptSlack)
		a.accepteds[i] = &at
	}
}

func nullable(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// entered is a call that is answered once its batch is committed.
type entered struct {
	call    *acceptCall
	receipt message.Receipt
}

func (l *Ledger) enterOnce(calls []*acceptCall) (known []*acceptCall, err error) {
	ctx, cancel := context.WithTimeout(l.life, l.cfg.Deadline)
	defer cancel()
	unsure := l.unsure.Load()
	var fresh []entered
	switch {
	case calls[0].shielded():
		fresh, err = l.enterOnceShielded(ctx, calls)
	case calls[0].entry != nil:
		fresh, err = l.enterKept(ctx, calls)
	default:
		fresh, err = l.enterRows(ctx, l.pool, calls)
	}
	if err != nil {
		return nil, err
	}
	if l.unsure.Load() != unsure {
		return nil, errUnsure
	}
	// Only now is the commit known.
	var replayed []*acceptCall
	for _, e := range fresh {
		c := e.call
		c.told = true
		c.receipt = e.receipt
		if e.receipt.Replayed && c.entry == nil {
			replayed = append(replayed, c)
			continue
		}
		if !e.receipt.Replayed {
			l.counts.accepted(c.s.Lane, len(c.s.Recipients), c.entry != nil)
			l.committed(e.receipt.Submission)
		}
		if plant.Is(plant.CountNumbers) {
			_ = l.pool.QueryRow(ctx, `select count(*) from message where stream = $1`, c.stream).Scan(&c.receipt.Sequence)
		}
		close(c.done)
	}
	l.recall(replayed)
	for _, c := range replayed {
		close(c.done)
	}
	if len(fresh) == len(calls) {
		return nil, nil
	}
	for _, c := range calls {
		if !c.told {
			known = append(known, c)
		}
	}
	return known, nil
}

// enterRows enters calls and returns those whose key was not known.
func (l *Ledger) enterRows(ctx context.Context, in querier, calls []*acceptCall) (fresh []entered, err error) {
	var a acceptArrays
	for i, c := range calls {
		a.add(c)
		a.supersede(i, len(calls), c)
		a.late(i, len(calls), c, &l.horizon.clock)
	}
	rows, err := acceptRows(ctx, in, &a, calls)
	if err != nil {
		return nil, err
	}
	fresh = make([]entered, 0, len(calls))
	var ord int32
	var r message.Receipt
	_, err = pgx.ForEachRow(rows, []any{&ord, &r.Submission, &r.Sequence, &r.Waiting}, func() error {
		fresh = append(fresh, entered{calls[ord-1], r})
		return nil
	})
	return fresh, err
}

func acceptRows(ctx context.Context, in querier, a *acceptArrays, calls []*acceptCall) (pgx.Rows, error) {
	args := []any{
		a.keys, a.prints, a.lanes, a.tenants, a.streams, a.counts, a.bodies, a.traces, a.tests, a.expiries, a.sendAts,
		a.owners, a.indexes, a.recipients, a.supersedes,
	}
	if calls[0].entry == nil { // a batch is the door's or the journal's
		return in.Query(ctx, `select ord, submission, first, waits from accept_batch($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16)`,
			append(args, a.accepteds)...)
	}
	accepteds, ids := make([]time.Time, len(calls)), make([][]byte, len(calls))
	for i, c := range calls {
		accepteds[i] = c.entry.acceptedAt
		if c.entry.held {
			ids[i] = c.entry.id[:24]
		}
	}
	return in.Query(ctx, `select ord, submission, first, waits from enter_batch($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17)`,
		append(args, accepteds, ids)...)
}

// answerRepeats answers calls whose key is in the ledger, in a statement of its
// own: the loser of a race sees no row in the one that it lost. unsure is
// l.unsure of before their batch.
func (l *Ledger) answerRepeats(calls []*acceptCall, unsure int64) {
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
	rows, err := l.pool.Query(ctx, `select key, submission, print, seq, waits from known_keys($1)`, keys)
	if err == nil {
		var key [16]byte
		var k known
		_, err = pgx.ForEachRow(rows, []any{&key, &k.submission, &k.print, &k.first, &k.waits}, func() error {
			found[key] = k
			k.print, k.first = nil, nil
			return nil
		})
	}
	if err == nil && l.unsure.Load() != unsure { // what they repeat may be in this server alone
		err = errUnsure
	}
	replayed := make([]*acceptCall, 0, len(calls))
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
			if c.entry == nil { // the journal's workers don't ask
				replayed = append(replayed, c)
			}
		}
	}
	l.recall(replayed)
	for _, c := range calls {
		close(c.done)
	}
}

const (
	// mostRecalled is from how many messages on one read tells the states of no more.
	mostRecalled = 500
	// recallLimit bounds all reads of a batch: others wait for its flusher.
	recallLimit = 500 * time.Millisecond
)

// recall fills in what has become of what calls repeat. Their ids and numbers are
// right without it, so a ledger that can't tell now changes nothing.
func (l *Ledger) recall(calls []*acceptCall) {
	ctx, cancel := context.WithTimeout(l.life, min(recallLimit, l.cfg.Deadline))
	defer cancel()
	for len(calls) > 0 {
		var ns []int64
		n := 0
		for ; n < len(calls) && len(ns) < mostRecalled; n++ {
			for i := range calls[n].s.Recipients {
				ns = append(ns, int64(calls[n].position(i)))
			}
		}
		views, err := l.views(ctx, ns)
		if err != nil {
			return
		}
		for _, c := range calls[:n] {
			states := make([]message.State, len(c.s.Recipients))
			for i := range states {
				if v := views[c.position(i)]; v != nil {
					states[i] = v.State
				}
			}
			if !slices.Contains(states, "") {
				c.receipt.States = states
			}
		}
		calls = calls[n:]
	}
}

// position is that of a message of what c repeats.
func (c *acceptCall) position(to int) message.Position {
	return message.PositionOf(c.s.Lane, c.receipt.Submission, to)
}
