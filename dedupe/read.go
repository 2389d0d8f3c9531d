package dedupe

import (
	"context"
	"encoding/hex"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/message"
)

// find is the position of a message by its id: through its identity, since
// nothing else has an index with random keys.
func (l *Ledger) find(ctx context.Context, id message.ID) (message.Position, error) {
	if id.IsSubmission() {
		return 0, message.ErrNotFound
	}
	lane, submission, count, err := l.identity(ctx, id)
	if err != nil {
		return 0, err
	}
	if id.Index() >= count {
		return 0, message.ErrNotFound
	}
	return message.PositionOf(lane, submission, id.Index()), nil
}

// identity is the submission that an id, a message's or its own, belongs to. It
// is under another key when it came second under its own (see Enter).
func (l *Ledger) identity(ctx context.Context, id message.ID) (lane message.Lane, submission int64, count int, err error) {
	for _, key := range []message.KeyHash{id.KeyHash(), message.ConflictKey(id)} {
		var print message.Fingerprint
		lane, submission, count, print, err = l.byKey(ctx, key)
		if err == nil && !id.Matches(print) {
			err = message.ErrNotFound
		}
		if err != message.ErrNotFound {
			break
		}
	}
	return lane, submission, count, err
}

// byKey is the submission under a key, with its fingerprint.
func (l *Ledger) byKey(ctx context.Context, key message.KeyHash) (lane message.Lane, submission int64, count int, print message.Fingerprint, err error) {
	var code int16
	var b []byte
	err = l.pool.QueryRow(ctx, `select lane, submission, count, print from identity where key = $1`, [16]byte(key)).
		Scan(&code, &submission, &count, &b)
	switch {
	case noRows(err):
		return lane, 0, 0, print, l.absent("find")
	case err != nil:
		return lane, 0, 0, print, unavailable("find", err)
	}
	return message.LaneOf(int64(code)), submission, count, message.Fingerprint(b), nil
}

// Message implements httpapi.Ledger.
func (l *Ledger) Message(ctx context.Context, tenant int32, id message.ID) (*message.View, error) {
	if err := l.stands("message"); err != nil { // what it doesn't know may have been accepted
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	n, err := l.find(ctx, id)
	if err == message.ErrNotFound {
		return l.parkedMessage(ctx, tenant, id)
	}
	if err != nil {
		return nil, err
	}
	views, err := l.views(ctx, []int64{int64(n)})
	if err != nil {
		return nil, err
	}
	v, ok := views[n]
	if !ok {
		return nil, l.absent("message")
	}
	if tenant != 0 && v.Tenant != tenant {
		return nil, message.ErrNotFound
	}
	if v.Content, err = l.Content(ctx, n); err != nil && err != message.ErrNotFound {
		return nil, err
	}
	return v, nil
}

// views reads messages with their histories and works out their states.
func (l *Ledger) views(ctx context.Context, ns []int64) (map[message.Position]*message.View, error) {
	if len(ns) == 0 {
		return nil, nil
	}
	b := &pgx.Batch{}
	b.Queue(`
		select x.n, x.id, x.tenant, x.stream, x.seq, x.recipient, x.accepted_at, x.expires_at, x.trace, x.entered_at, x.due, x.repeats, x.doubted,
		       coalesce((select coalesce('its tag ' || h.tag, 'its tenant') || ' is held' from hold h where h.id = x.held), '')
		from read_messages($1) x`, ns)
	b.Queue(`
		select n, no, kind, worker, at, note, outcome, outcome_at, provider, code, reply, reference, decision, by, reason, decided_at
		from read_attempts($1)`, ns)
	b.Queue(`select n, kind, provider, at, detail from event where n = any ($1) order by n, at limit 10000`, ns)
	r := l.pool.SendBatch(ctx, b)
	defer r.Close()
	views, doubted, err := scanMessages(r, len(ns))
	if err == nil {
		err = scanAttempts(r, views)
	}
	if err == nil {
		err = scanEvents(r, views)
	}
	if err != nil {
		return nil, unavailable("read", err)
	}
	for p, v := range views {
		v.State, v.Reason = stateOf(v, doubted[p])
		if v.Aside != "" && v.State == message.StateWaiting {
			v.Reason, v.DueAt = v.Aside, time.Time{}
		}
	}
	return views, nil
}

func scanMessages(r pgx.BatchResults, count int) (map[message.Position]*message.View, map[message.Position]bool, error) {
	rows, err := r.Query()
	if err != nil {
		return nil, nil, err
	}
	views := make(map[message.Position]*message.View, count)
	doubted := make(map[message.Position]bool)
	defer rows.Close()
	for rows.Next() {
		v := &message.View{}
		var n int64
		var id []byte
		var due, entered *time.Time
		var first []byte
		var doubt bool
		if err := rows.Scan(&n, &id, &v.Tenant, &v.Stream, &v.Sequence, &v.Recipient, &v.AcceptedAt, &v.ExpiresAt, &v.Trace, &entered, &due, &first, &doubt, &v.Aside); err != nil {
			return nil, nil, err
		}
		v.Position = message.Position(n)
		copy(v.ID[:24], id)
		v.ID = v.ID.Message(v.Position.Index())
		v.Lane = v.Position.Lane()
		if entered != nil {
			v.EnteredAt = *entered
		}
		if first != nil {
			copy(v.RepeatOf[:24], first)
			v.RepeatOf = v.RepeatOf.Submission()
		}
		if due != nil {
			v.DueAt = *due
		}
		views[v.Position], doubted[v.Position] = v, doubt
	}
	return views, doubted, rows.Err()
}

const kindSupersede = 4

var attemptKinds = [...]string{1: "send", 2: "cancel", 3: "expire", 4: "supersede", 5: "hold"}

func scanAttempts(r pgx.BatchResults, views map[message.Position]*message.View) error {
	rows, err := r.Query()
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var n int64
		var a message.Attempt
		var kind, outcome int16
		var note, because, decision string
		var outcomeAt, decidedAt *time.Time
		if err := rows.Scan(&n, &a.Number, &kind, &a.Worker, &a.At, &note, &outcome, &outcomeAt,
			&a.Provider, &a.Code, &a.Reply, &a.Reference, &decision, &a.DecidedBy, &because, &decidedAt); err != nil {
			return err
		}
		a.Kind, a.Outcome, a.Decision = attemptKinds[kind], message.Outcome(outcome), message.Decision(decision)
		if a.Because = because; because == "" {
			a.Because = note
		}
		if kind == kindSupersede {
			a.Because = supersededBy(note)
		}
		if outcomeAt != nil {
			a.OutcomeAt = *outcomeAt
		}
		if decidedAt != nil {
			a.DecidedAt = *decidedAt
		}
		if v := views[message.Position(n)]; v != nil {
			v.Attempts = append(v.Attempts, a)
		}
	}
	return rows.Err()
}

func scanEvents(r pgx.BatchResults, views map[message.Position]*message.View) error {
	rows, err := r.Query()
	if err != nil {
		return err
	}
	var n int64
	var e message.ProviderEvent
	_, err = pgx.ForEachRow(rows, []any{&n, &e.Kind, &e.Provider, &e.At, &e.Detail}, func() error {
		if v := views[message.Position(n)]; v != nil {
			v.Events = append(v.Events, e)
		}
		return nil
	})
	return err
}

// supersededBy tells which submission a note of the ledger names: the first 24
// bytes of its id, in hexadecimal.
func supersededBy(note string) string {
	b, err := hex.DecodeString(note)
	if err != nil || len(b) != 24 {
		return note
	}
	var id message.ID
	copy(id[:], b)
	return "superseded by " + id.Submission().String()
}

// stateOf is what the last row of a message's history makes it. The reason is
// set where a state needs one.
func stateOf(v *message.View, doubted bool) (message.State, string) {
	if len(v.Attempts) == 0 {
		if !v.DueAt.IsZero() {
			return message.StateWaiting, ""
		}
		return message.StateQueued, ""
	}
	last := v.Attempts[len(v.Attempts)-1]
	switch last.Kind {
	case "cancel":
		if v.RepeatOf != (message.ID{}) {
			return message.StateCanceled, last.Because
		}
		return message.StateCanceled, ""
	case "expire":
		return message.StateExpired, ""
	case "supersede":
		return message.StateSuperseded, last.Because
	case "hold":
		if last.Outcome == message.Returned {
			return message.StateWaiting, ""
		}
		return message.StateHeld, last.Because
	}
	switch last.Decision { // what was decided stands, whatever came late
	case message.DecideSent:
		return message.StateSent, last.Because
	case message.DecideDrop:
		if last.Because == message.RecipientGone {
			return message.StateFailed, last.Because
		}
		return message.StateFailed, "dropped"
	case message.DecideResend:
		return message.StateWaiting, ""
	}
	switch last.Outcome {
	case message.Sent:
		return message.StateSent, ""
	case message.Rejected:
		if last.Code == message.RecipientGone {
			return message.StateFailed, last.Code
		}
		return message.StateFailed, firstOf(last.Reply, last.Code)
	case message.Unknown:
		return message.StateInDoubt, firstOf(last.Reply, "the provider's answer was lost")
	case message.Deferred, message.Returned:
		return message.StateWaiting, firstOf(last.Reply, last.Code)
	}
	if doubted {
		return message.StateInDoubt, "its worker is gone"
	}
	return message.StateSending, ""
}

func firstOf(all ...string) string {
	for _, s := range all {
		if s != "" {
			return s
		}
	}
	return ""
}
