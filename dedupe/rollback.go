package dedupe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/stormpost/stormpost/internal/atomicfile"
	"github.com/stormpost/stormpost/internal/message"
)

// A ledger that was rolled back (restored from a backup, or a replica promoted
// that lagged) has forgotten what was accepted and handed over since. Going on
// with it would lose the one and send the other twice. So each new connection,
// and each round of the house, compares what the process knows with the server:
//
//   - system identifier and timeline: another server's history, or another one
//     from a promotion on;
//   - the end of its flushed log: what was flushed stays, so within a timeline it
//     only ascends, over crashes too;
//   - the highest submission number whose commit was seen. Not the sequence's last
//     value: numbers given out in vain may be given out again after a crash;
//   - the branch (table lineage), which a reconciliation begins anew.
//
// What the process knows outlives it in a file. One without it has Kafka's word:
// a record above everything that the ledger numbered (claimed).
//
// Whoever finds a mismatch notes it in the table rollback, in the very connection
// that has shown it and before it is used. From then on the functions refuse
// to accept, claim and record, whoever asks, until reconcile.go closes the row.

// ErrRolledBack is wrapped, beside message.ErrUnavailable, by what is refused
// until the ledger is reconciled.
var ErrRolledBack = errors.New("the ledger was rolled back and is not reconciled")

// saveEvery is how often what is known of the ledger goes to the file.
const saveEvery = time.Second

// descent is what tells one history of the database from another.
type descent struct {
	System   string `json:"system"`
	Timeline string `json:"timeline"`
	Flushed  int64  `json:"flushed"`  // end of the flushed log, in bytes
	Position int64  `json:"position"` // the highest submission number seen committed
	Branch   string `json:"branch"`   // empty: nothing is known
	Root     string `json:"root"`     // the first branch: which ledger it is at all
}

// rollbackState is what the process knows of it.
type rollbackState struct {
	mu    sync.Mutex
	known descent
	saved descent
	at    time.Time // of the save
	cause string    // of an open rollback; empty: none
	since time.Time
	ever  bool // the file was read
}

// RolledBack says why the ledger stands still, and since when this process
// knows; an empty cause: it doesn't.
func (l *Ledger) RolledBack() (cause string, since time.Time) {
	s := &l.rollback
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause, s.since
}

// stands fails while the ledger is rolled back.
func (l *Ledger) stands(op string) error {
	if cause, _ := l.RolledBack(); cause != "" {
		return fmt.Errorf("%s: %w: %w: %s", op, message.ErrUnavailable, ErrRolledBack, cause)
	}
	return nil
}

// absent is the error for what was looked for and isn't there: a rollback may
// have been noticed by the very connection that looked.
func (l *Ledger) absent(op string) error {
	if err := l.stands(op); err != nil {
		return err
	}
	return message.ErrNotFound
}

// committed notes a submission that is known to be committed.
func (l *Ledger) committed(submission int64) {
	s := &l.rollback
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause == "" {
		s.known.Position = max(s.known.Position, submission)
	}
}

// begin reads what an earlier process knew. A file that can't be read is told
// and done without.
func (s *rollbackState) begin(l *Ledger) {
	if s.ever || l.cfg.StateFile == "" {
		return
	}
	s.ever = true
	b, err := os.ReadFile(l.cfg.StateFile)
	if err == nil {
		err = json.Unmarshal(b, &s.known)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.log.Warn("what was known of the ledger can't be read; a rollback before now may be missed", "file", l.cfg.StateFile, "error", err)
		s.known = descent{}
	}
	s.saved = s.known
}

// afterConnect lets no connection be used whose descent was not looked at, but
// where the schema can't tell it: one in pieces is the guard's to tell of.
func (l *Ledger) afterConnect(ctx context.Context, c *pgx.Conn) error {
	fastBytes(c.TypeMap())
	err := l.checkDescent(ctx, c)
	var pe *pgconn.PgError
	if errors.As(err, &pe) && strings.HasPrefix(pe.Code, "42") {
		l.log.Warn("the ledger's descent can't be told", "error", err)
		return nil
	}
	return err
}

// checkDescent compares the server behind q with what is known, notes a
// rollback there, and learns what is new.
func (l *Ledger) checkDescent(ctx context.Context, q querier) error {
	s := &l.rollback
	s.mu.Lock()
	s.begin(l)
	was := s.known // before anything is asked: what others learn meanwhile is no mismatch
	s.mu.Unlock()
	now, ok, err := readDescent(ctx, q)
	if err != nil || !ok {
		return err
	}
	var cause *string
	var descends bool
	if err := q.QueryRow(ctx, `select (select cause from rollback where closed_at is null limit 1), exists (select from lineage where branch::text = $1)`,
		was.Branch).Scan(&cause, &descends); err != nil {
		return err
	}
	if was.Branch != "" && was.Root != now.Root { // not ours to stop: only this process does
		why := "it is not the ledger of before; if it is the right one, remove " + l.cfg.StateFile
		cause = &why
	}
	if cause == nil {
		if why := mismatch(was, now, descends); why != "" {
			cause = &why
			if err = noteRollback(ctx, q, why); err != nil {
				// The cause is not wrapped: its code says nothing of what was asked of
				// the connection. This process stands still meanwhile.
				err = fmt.Errorf("%w: %s: it can't be noted: %v", ErrRolledBack, why, err)
			}
		}
	}
	l.learn(was, now, cause)
	return err
}

// unnoticed is for how long a restored ledger may have been worked on, by processes
// that didn't know, for its history's end to be known all the same.
const unnoticed = time.Hour

// noteRollback stops the ledger, for everybody. Its history is known up to its last
// pulse. A process that knew nothing may have given it another one since, and then
// has noted the hole before that as an outage.
func noteRollback(ctx context.Context, q querier, why string) error {
	_, err := q.Exec(ctx, `
		insert into rollback (cause, back_to)
		select $1, least(coalesce((select at from pulse), 'epoch'), (select min(since) from outage where until > clock_timestamp() - $2::interval))
		on conflict ((true)) where closed_at is null do nothing`, why, unnoticed)
	return err
}

// readDescent asks the server who it is. It is not ok for a standby, and with a
// schema that has no lineage yet.
func readDescent(ctx context.Context, q querier) (d descent, ok bool, err error) {
	err = q.QueryRow(ctx, `select to_regclass('lineage') is not null and not pg_is_in_recovery()`).Scan(&ok)
	if err != nil || !ok {
		return d, false, err
	}
	if err := q.QueryRow(ctx, `
		select (select system_identifier::text from pg_control_system()), substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8),
			(pg_current_wal_flush_lsn() - '0/0')::bigint, (select branch::text from lineage order by no desc limit 1),
			(select branch::text from lineage order by no limit 1)`).
		Scan(&d.System, &d.Timeline, &d.Flushed, &d.Branch, &d.Root); err != nil {
		return d, false, err
	}
	d.Position, err = given(ctx, q)
	return d, err == nil, err
}

// given is the greatest submission number that was ever given out, as far as
// the ledger knows: retention may have dropped its message.
func given(ctx context.Context, q querier) (n int64, err error) {
	err = q.QueryRow(ctx, `
		select greatest(0, (select case when is_called then last_value end from position), (select max(position) from numbering),
			(select max((m.n >> 6) & $1) from lane l cross join lateral (
				select m.n from message m where m.n >= l.code::bigint << 57 and m.n < (l.code + 1)::bigint << 57 order by m.n desc limit 1) m))`,
		int64(submissionMask)).Scan(&n)
	return n, err
}

// mismatch says why now can't be what was known before, or nothing. descends
// says that now knows was's branch.
func mismatch(was, now descent, descends bool) string {
	switch {
	case was.Branch == "" || descends && was.Branch != now.Branch: // nothing is known, or it was reconciled since
		return ""
	case !descends:
		return "it does not know its last reconciliation"
	case was.System != now.System:
		return fmt.Sprintf("it is another server: system identifier %s, was %s", now.System, was.System)
	case was.Timeline != now.Timeline:
		return fmt.Sprintf("it is on timeline %s, was %s: a standby was promoted, or a backup restored", now.Timeline, was.Timeline)
	case now.Flushed < was.Flushed:
		return fmt.Sprintf("its log ends %d bytes before what it had flushed", was.Flushed-now.Flushed) + heights(was, now)
	case now.Position < was.Position:
		return fmt.Sprintf("its highest submission is %d, was %d", now.Position, was.Position)
	}
	return ""
}

// heights adds the highest submissions to a mismatch, where it was one of them.
func heights(was, now descent) string {
	if now.Position >= was.Position {
		return ""
	}
	return fmt.Sprintf("; its highest submission is %d, was %d", now.Position, was.Position)
}

// learn takes over what was read. Whatever the process keeps of a ledger's
// content is worth nothing after a rollback.
func (l *Ledger) learn(was, now descent, cause *string) {
	s := &l.rollback
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case cause != nil:
		if s.cause == "" {
			s.since = time.Now()
			l.log.Error("the ledger was rolled back: nothing is claimed, and accepting goes to the journal, until stormpost reconcile", "cause", *cause)
			l.forget()
		}
		s.cause = *cause
		return
	case s.cause != "" || s.known.Branch != now.Branch:
		if s.known.Branch != was.Branch {
			return // somebody else has just learned it
		}
		if s.known.Branch != "" {
			l.log.Warn("the ledger is reconciled", "branch", now.Branch)
			l.forget()
		}
		s.cause, s.known = "", now
		s.known.Position = 0 // what is given out may not be committed
	case s.known.System != now.System || s.known.Timeline != now.Timeline:
		return // of another time
	default:
		s.known.Flushed = max(s.known.Flushed, now.Flushed)
	}
	l.save(s)
}

// forget drops what is cached of the ledger.
func (l *Ledger) forget() {
	l.streams.mu.Lock()
	clear(l.streams.ids)
	l.streams.mu.Unlock()
	l.horizon.forget()
	l.process.Store(0) // the row is gone, or another's
}

// save keeps what is known, once a second at most, but another branch at once.
func (l *Ledger) save(s *rollbackState) {
	if l.cfg.StateFile == "" || s.saved == s.known || s.saved.Branch == s.known.Branch && time.Since(s.at) < saveEvery {
		return
	}
	b, err := json.Marshal(s.known)
	if err == nil {
		err = atomicfile.Write(l.cfg.StateFile, b)
	}
	if err != nil {
		l.log.Warn("what is known of the ledger can't be kept", "file", l.cfg.StateFile, "error", err)
	}
	s.saved, s.at = s.known, time.Now()
}

// lookAround is the house's check.
func (l *Ledger) lookAround(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	if err := l.checkDescent(ctx, l.pool); err != nil {
		return unavailable("descent", err)
	}
	return nil
}

// proven stops the ledger if a record's position is above all that it ever
// gave out, and says whether it is.
func (l *Ledger) proven(ctx context.Context, p message.Position) (bool, error) {
	top, err := given(ctx, l.pool)
	if err != nil || p.Submission() <= top {
		return false, err
	}
	why := fmt.Sprintf("Kafka has a record of submission %d, and the ledger has given out none above %d", p.Submission(), top)
	if err := noteRollback(ctx, l.pool, why); err != nil {
		return false, err
	}
	return true, l.checkDescent(ctx, l.pool)
}
