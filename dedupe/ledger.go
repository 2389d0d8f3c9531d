package dedupe

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/exaring/otelpgx"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/trace"

	"github.com/stormpost/stormpost/internal/message"
)

// Config says where the ledger is and how patient its callers are.
type Config struct {
	DSN      string // postgres://… of the writer, never of a replica
	MaxConns int32  // default 24

	Batch    int // rows a batch at most, default 1000
	Flushers int // batches under way at once, of each kind, default 2

	// Deadline is how long an operation may take before its fate counts as
	// unknown, default 5 s. The server gives up at four fifths of it.
	Deadline time.Duration
	// BeatEvery is how often the process's heartbeat is due, default 2 s. After
	// three of them missed it counts as gone.
	BeatEvery time.Duration
	// GiveUp is how long after its claim an attempt may still end by itself, for
	// a process that has told nothing yet; default 11 min.
	GiveUp time.Duration

	// Resend names, for lanes whose doubts are not held, the policy that has
	// them resent, as "policy:trigger.push".
	Resend map[message.Lane]string

	// Journaled tells, without asking a store, how many messages the journals alone
	// have of each lane of which that is known, and when that was so; nil: of none.
	// For when a lane will be drained.
	Journaled func() (messages map[message.Lane]int64, at time.Time)

	// StateFile keeps what tells a rolled-back ledger over restarts; empty: only
	// this process's own memory does.
	StateFile string
	// Reconciling lets this Ledger work on one that was rolled back.
	Reconciling bool

	Name           string   // of this process, default host:pid
	Roles          []string // what it does, told in its name, as api,worker/host:pid
	Logger         *slog.Logger
	TracerProvider trace.TracerProvider // nil: statements are not traced
}

func (c Config) withDefaults() Config {
	if c.MaxConns <= 0 {
		c.MaxConns = 24
	}
	if c.Batch <= 0 {
		c.Batch = 1000
	}
	if c.Flushers <= 0 {
		c.Flushers = 2
	}
	if c.Deadline <= 0 {
		c.Deadline = 5 * time.Second
	}
	if c.BeatEvery <= 0 {
		c.BeatEvery = 2 * time.Second
	}
	if c.GiveUp <= 0 {
		c.GiveUp = 11 * time.Minute
	}
	if c.Name == "" {
		host, _ := os.Hostname()
		c.Name = fmt.Sprintf("%s:%d", host, os.Getpid())
	}
	if len(c.Roles) > 0 {
		c.Name = strings.Join(c.Roles, ",") + "/" + c.Name
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Ledger is the ledger as one process uses it. Its methods are safe for
// concurrent use. It works, by failing with message.ErrUnavailable, while the
// database is away, also if it was away when the Ledger was opened.
type Ledger struct {
	cfg   Config
	pool  *pgxpool.Pool
	log   *slog.Logger
	life  context.Context // ends with Close
	end   context.CancelFunc
	wg    sync.WaitGroup
	close sync.Once

	streams streamCache
	accepts *batcher[*acceptCall]
	enters  *batcher[*acceptCall] // from the journal
	works   *works

	process  atomic.Int32 // this process's row; 0 until the first registration
	tokens   atomic.Int64 // a random start, then counted
	horizon  horizon
	counts   laneCounts
	lanes    laneReader
	fair     [laneCodes]fairState
	guard    guardState
	unsure   atomic.Int64  // commits that a standby may not have
	full     atomic.Int64  // when a batch last found the disk full, in Unix nanoseconds; 0 once one went in
	reads    chan struct{} // one for each read that may take long
	audits   chan struct{} // one for the audit of lanes
	holds    holdCache
	tenants  sync.Map // names by number
	rollback rollbackState
	patient  time.Duration // after it a stream's audit answers with what it has
}

// Open makes a Ledger. It connects lazily: an error is about the configuration.
func Open(cfg Config) (*Ledger, error) {
	cfg = cfg.withDefaults()
	pc, err := pgxpool.ParseConfig(cfg.DSN)
	if err != nil {
		return nil, fmt.Errorf("dsn: %w", redactDSN(err))
	}
	pc.MaxConns = cfg.MaxConns
	pc.MinIdleConns = 2
	pc.MaxConnLifetime = time.Hour
	pc.MaxConnLifetimeJitter = 10 * time.Minute
	pc.ConnConfig.ConnectTimeout = cfg.Deadline / 2
	server := cfg.Deadline * 4 / 5
	setDefault(pc.ConnConfig.RuntimeParams, "application_name", "stormpost")
	// Nothing here reads so much that helpers, which take long to start, would pay.
	setDefault(pc.ConnConfig.RuntimeParams, "max_parallel_workers_per_gather", "0")
	setDefault(pc.ConnConfig.RuntimeParams, "statement_timeout", millis(server))
	setDefault(pc.ConnConfig.RuntimeParams, "lock_timeout", millis(server*3/4))
	setDefault(pc.ConnConfig.RuntimeParams, "idle_in_transaction_session_timeout", millis(4*server))
	if cfg.TracerProvider != nil {
		pc.ConnConfig.Tracer = otelpgx.NewTracer(otelpgx.WithTracerProvider(cfg.TracerProvider), otelpgx.WithDisableSQLStatementInAttributes())
	}
	l := &Ledger{cfg: cfg, log: cfg.Logger, reads: make(chan struct{}, max(1, cfg.MaxConns/4)), audits: make(chan struct{}, 1), patient: auditBudget}
	pc.ConnConfig.OnNotice = l.notice
	if cfg.Reconciling {
		pc.ConnConfig.RuntimeParams["stormpost.reconciling"] = "on"
	} else {
		pc.AfterConnect = l.afterConnect
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), pc)
	if err != nil {
		return nil, fmt.Errorf("dsn: %w", redactDSN(err))
	}
	l.pool = pool
	l.life, l.end = context.WithCancel(context.Background())
	var seed [8]byte
	if _, err := rand.Read(seed[:]); err != nil {
		pool.Close()
		return nil, fmt.Errorf("random token: %w", err)
	}
	l.tokens.Store(int64(binary.LittleEndian.Uint64(seed[:]) >> 1))
	l.streams.init()
	l.accepts = newBatcher(&l.wg, cfg.Batch, cfg.Flushers, l.acceptBatch)
	l.enters = newBatcher(&l.wg, cfg.Batch, cfg.Flushers, l.acceptBatch)
	l.works = l.newWorks()
	return l, nil
}

// notice counts the warning that a commit didn't wait for its standby: it is in
// this server alone, so nobody may promise that it is kept.
func (l *Ledger) notice(_ *pgconn.PgConn, n *pgconn.Notice) {
	if strings.Contains(n.Message, "synchronous replication") {
		l.unsure.Add(1)
		l.log.Warn("a commit did not wait for its standby", "message", n.Message)
	}
}

// read waits for the right to a read that may take long: so those never have
// all of the connections, which accepting and delivering need.
func (l *Ledger) read(ctx context.Context) (done func(), err error) {
	select {
	case l.reads <- struct{}{}:
		return func() { <-l.reads }, nil
	case <-ctx.Done():
		return nil, unavailable("read", ctx.Err())
	}
}

func setDefault(m map[string]string, key, value string) {
	if _, ok := m[key]; !ok {
		m[key] = value
	}
}

func millis(d time.Duration) string { return fmt.Sprint(max(1, d.Milliseconds())) }

// ErrDSN is of a DSN that can't be read.
var ErrDSN = errors.New("not a PostgreSQL connection string")

// redactDSN keeps a parse error from showing the password.
func redactDSN(err error) error {
	var pe *pgxParseError
	if errors.As(err, &pe) {
		return ErrDSN
	}
	return err
}

// fullFor is for how long a disk counts as full after the last batch that found it
// so. While any mail waits, another one comes sooner.
const fullFor = 15 * time.Second

// room notes what came of putting something in.
func (l *Ledger) room(err error) {
	switch {
	case err == nil:
		l.full.Store(0)
	case isCode(err, codeDiskFull):
		l.full.Store(time.Now().UnixNano())
	}
}

// Ping says whether the database answers and can be written to, as far as can be
// known without writing: whether it has room the batches know that came in last.
func (l *Ledger) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	var recovering bool
	var readOnly string
	err := l.pool.QueryRow(ctx, `select pg_is_in_recovery(), current_setting('default_transaction_read_only')`).Scan(&recovering, &readOnly)
	switch {
	case refused(err):
		return unavailable("ping", fmt.Errorf("%w: %w", ErrRefused, err))
	case err != nil:
		return unavailable("ping", err)
	case recovering || readOnly == "on":
		return fmt.Errorf("ping: %w: the database is read-only", message.ErrUnavailable)
	}
	if at := l.full.Load(); at != 0 && time.Since(time.Unix(0, at)) < fullFor {
		return fmt.Errorf("ping: %w: the database's disk is full", message.ErrUnavailable)
	}
	return nil
}

// Close ends the batchers: calls under way are answered first, unless the
// database keeps them waiting for longer than the deadline.
func (l *Ledger) Close() {
	l.close.Do(func() {
		l.accepts.stop()
		l.enters.stop()
		timer := time.AfterFunc(l.cfg.Deadline, l.end)
		l.works.stop()
		l.wg.Wait()
		timer.Stop()
		l.end()
		l.pool.Close()
	})
}
