package drill

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/devstack"
	"github.com/stormpost/stormpost/internal/drill/judge"
	"github.com/stormpost/stormpost/internal/sim"
)

// Stage is everything that runs in a drill, and what a Drill's Run works with.
type Stage struct {
	Postgres *devstack.Postgres // nil when one was given
	Kafka    *devstack.Kafka    // nil when one was given
	Prefix   string             // of topics and of the consumer group

	drill    Drill
	opt      Options
	dir      string
	dsn      string
	brokers  []string
	env      []string
	key      string // send and read
	oper     string // operator
	sims     *sim.Sims
	apis     []*server
	others   []*server
	load     *load
	links    links
	fillable bool // the ledger's disk can be filled
	asked    asked
	file     *judge.File
	start    time.Time
	closers  []func() error

	mu          sync.Mutex
	result      *Result
	harmed      bool // something was
	lastHarm    time.Time
	healed      time.Time
	harmsDone   []*harm
	told        map[string]seen // incidents, by id
	kafkaLess   time.Time       // when a node of Kafka was seen missing last
	unwell      time.Time       // when a store was known not to be well last
	storeHarmed bool            // by a drill, and not healed
	silencing   int             // faults that last, through which an answer may fail
	brokenBy    map[string]int
	harms       judge.Harms
}

// Rows of a process: how soon what a drill breaks is seen to, where the
// defaults are for days.
var processSettings = []string{
	"STORMPOST_LISTEN=127.0.0.1:0", "STORMPOST_METRICS_LISTEN=127.0.0.1:0",
	"STORMPOST_DELIVERY_CLAIM_VALID=15s", "STORMPOST_DELIVERY_RETRY_BASE=1s", "STORMPOST_DELIVERY_RETRY_MAX=10s",
	"STORMPOST_SMTP_REPLY_LIMIT=15s", "STORMPOST_FCM_REPLY_LIMIT=15s", "STORMPOST_DELIVERY_SHUTDOWN_GRACE=5s",
}

// newStage starts everything. What it has started is ended by close also after
// an error.
func newStage(ctx context.Context, d Drill, opt Options) (*Stage, error) {
	s := &Stage{drill: d, opt: opt, asked: asked{states: make(map[string]int), told: make(map[judge.Told]bool)}, brokenBy: make(map[string]int), result: &Result{
		Drill: d.Name, Seed: opt.Seed, Evidence: map[string]any{}, Broken: []string{}, Timeline: []Tick{},
	}}
	var err error
	if s.dir, err = os.MkdirTemp("", "stormpost-drill-"); err != nil {
		return nil, err
	}
	// PostgreSQL may have to run as another user.
	if err := os.Chmod(s.dir, 0o711); err != nil {
		return s, err
	}
	s.Prefix = strings.ToLower(filepath.Base(s.dir))
	if err := s.startStores(ctx); err != nil {
		return s, err
	}
	if s.sims, err = sim.StartAll(ctx, sim.Config{Dir: filepath.Join(s.dir, "providers")}); err != nil {
		return s, err
	}
	s.closers = append(s.closers, s.sims.Close)
	dsn, brokers, err := s.reach()
	if err != nil {
		return s, err
	}
	s.env = append(append(cleanEnv(), processSettings...),
		"STORMPOST_DSN="+dsn, "STORMPOST_BROKERS="+strings.Join(brokers, ","), "STORMPOST_KAFKA_PREFIX="+s.Prefix,
		"STORMPOST_SMTP_ADDR="+s.sims.SMTP.Addr(), "STORMPOST_FCM_BASE_URL="+s.sims.FCM.URL(),
		"STORMPOST_FCM_SERVICE_ACCOUNT=file:"+s.sims.ServiceAccountFile)
	s.env = append(s.env, opt.Env...)
	if d.Shape.Prepare != nil {
		if err := d.Shape.Prepare(ctx, s); err != nil {
			return s, err
		}
	}
	if err := s.command(ctx, nil, "migrate"); err != nil {
		return s, err
	}
	for scope, key := range map[string]*string{"send,read": &s.key, "operator": &s.oper} {
		var made struct{ Key string }
		if err := s.command(ctx, &made, "keys", "create", "--tenant", "drill", "--domain", "*", "--scope", scope); err != nil {
			return s, err
		}
		*key = made.Key
	}
	if d.Shape.Keyless {
		if err := s.command(ctx, nil, "tenants", "repeats", "drill", "suppress"); err != nil {
			return s, err
		}
	}
	if s.file, err = judge.Create(filepath.Join(s.dir, "accepted.jsonl")); err != nil {
		return s, err
	}
	s.closers = append(s.closers, s.file.Close)
	s.load = newLoad(s, s.file)
	s.closers = append(s.closers, func() error { s.load.http.CloseIdleConnections(); return nil })
	return s, s.startProcesses(ctx)
}

func (s *Stage) startStores(ctx context.Context) (err error) {
	log := slog.New(slog.DiscardHandler)
	s.dsn, s.brokers = s.opt.DSN, s.opt.Brokers
	if s.dsn == "" {
		s.say("starting PostgreSQL")
		s.Postgres, err = devstack.StartPostgres(ctx, devstack.PostgresConfig{Dir: filepath.Join(s.dir, "postgres"), Logger: log})
		if err != nil {
			return err
		}
		s.closers = append(s.closers, func() error { return s.Postgres.Stop(context.Background()) })
		s.dsn = s.Postgres.DSN()
	} else if err := s.ownDatabase(ctx); err != nil {
		return fmt.Errorf("--dsn: %w", err)
	}
	if len(s.brokers) > 0 {
		return nil
	}
	s.say("starting three nodes of Apache Kafka")
	told, err := s.linkKafka(ctx, 3)
	if err != nil {
		return err
	}
	s.Kafka, err = devstack.StartKafka(ctx, devstack.KafkaConfig{Dir: filepath.Join(s.dir, "kafka"), Nodes: 3, Advertise: told, Heap: 256, ShortLived: true, Logger: log})
	if err != nil {
		return err
	}
	s.brokers = s.Kafka.Brokers()
	s.closers = append(s.closers, func() error {
		var errs []error
		for i := range s.brokers {
			errs = append(errs, s.Kafka.Kill(i)) // its data goes as well
		}
		return errors.Join(append(errs, s.Kafka.Stop(context.Background()))...)
	})
	return nil
}

// ownDatabase makes a database on the server that was given, and removes it at
// the end.
func (s *Stage) ownDatabase(ctx context.Context) error {
	u, err := url.Parse(s.opt.DSN)
	if err != nil {
		return err
	}
	name := pgx.Identifier{strings.ReplaceAll(s.Prefix, "-", "_")}
	if err := s.execOn(ctx, s.opt.DSN, "create database "+name.Sanitize()); err != nil {
		return err
	}
	s.closers = append(s.closers, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		return s.execOn(ctx, s.opt.DSN, "drop database "+name.Sanitize()+" with (force)")
	})
	u.Path = "/" + name[0]
	s.dsn = u.String()
	return nil
}

// startProcesses starts two API processes and two workers, and one for recovery
// and watch where the program has these roles.
func (s *Stage) startProcesses(ctx context.Context) error {
	s.say("starting api ×2, worker ×2, recovery and watch")
	for _, name := range []string{"api-1", "api-2"} {
		s.apis = append(s.apis, &server{stage: s, name: name, roles: "api"})
	}
	for _, name := range []string{"worker-1", "worker-2"} {
		s.others = append(s.others, &server{stage: s, name: name, roles: "worker"})
	}
	for _, p := range append(append([]*server{}, s.apis...), s.others...) {
		if err := p.start(ctx); err != nil {
			return err
		}
	}
	care := &server{stage: s, name: "recovery", roles: "recovery,watch"}
	switch err := care.start(ctx); {
	case err == nil:
		s.others = append(s.others, care)
	case ctx.Err() != nil:
		return err
	case strings.Contains(err.Error(), "unknown role"):
		s.say("this program has no roles recovery and watch")
	default:
		care.kill()
		return err
	}
	return nil
}

// close ends everything, and removes the folder unless it is to be kept.
func (s *Stage) close() error {
	var wg sync.WaitGroup
	for _, p := range append(append([]*server{}, s.apis...), s.others...) {
		wg.Go(func() { p.stop(8 * time.Second) })
	}
	wg.Wait()
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i]())
	}
	if s.opt.Keep {
		s.say("files and logs are kept in " + s.dir)
	} else {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}

func (s *Stage) say(text string) { fmt.Fprintln(s.opt.Progress, "drill:", text) }

// API is the base URL of the nth API process, modulo their number.
func (s *Stage) API(n int) string {
	if p := s.apis[n%len(s.apis)].current(); p != nil {
		return p.api
	}
	return ""
}

// RestartAPI kills an API process and starts it again.
func (s *Stage) RestartAPI(ctx context.Context, n int) error {
	s.Event("kill -9 of %s, and its start", s.apis[n].name)
	s.apis[n].kill()
	return s.apis[n].start(ctx)
}

// Exec runs a statement in the ledger: to do harm, never to judge.
func (s *Stage) Exec(ctx context.Context, sql string, args ...any) error {
	return s.execOn(ctx, s.dsn, sql, args...)
}

// admin is a connection string to another database of the ledger's server, and
// the ledger's name, quoted.
func (s *Stage) admin() (dsn, ledger string, err error) {
	u, err := url.Parse(s.dsn)
	if err != nil {
		return "", "", err
	}
	ledger = pgx.Identifier{strings.TrimPrefix(u.Path, "/")}.Sanitize()
	u.Path = "/postgres"
	return u.String(), ledger, nil
}

func (s *Stage) execOn(ctx context.Context, dsn, sql string, args ...any) error {
	c, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer c.Close(context.Background())
	_, err = c.Exec(ctx, sql, args...)
	return err
}

// Text reads one text from the ledger; empty when there is no row.
func (s *Stage) Text(ctx context.Context, sql string) (text string, err error) {
	c, err := pgx.Connect(ctx, s.dsn)
	if err != nil {
		return "", err
	}
	defer c.Close(context.Background())
	if err = c.QueryRow(ctx, sql).Scan(&text); errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return text, err
}

// At waits until a share of the messages has been offered.
func (s *Stage) At(ctx context.Context, share float64) error {
	if !waitUntil(ctx, s.start.Add(due(int(share*float64(s.opt.Messages)), s.opt.Messages, s.opt.Rate))) {
		return ctx.Err()
	}
	return nil
}

// Until polls what has no signal until it is so; false when limit is over.
func (s *Stage) Until(ctx context.Context, limit time.Duration, so func() bool) bool {
	end := time.Now().Add(limit)
	for !so() {
		if time.Now().After(end) || !waitUntil(ctx, time.Now().Add(100*time.Millisecond)) {
			return false
		}
	}
	return true
}

// Wait waits, for as long as an outage is to last.
func (s *Stage) Wait(ctx context.Context, d time.Duration) error {
	if !waitUntil(ctx, time.Now().Add(d)) {
		return ctx.Err()
	}
	return nil
}

// Scaled is d in a drill of 100,000 messages, and shorter with fewer, but at
// least least.
func (s *Stage) Scaled(d, least time.Duration) time.Duration {
	return min(d, max(least, time.Duration(float64(d)*float64(s.opt.Messages)/100_000)))
}

// Span is a share of the time that the load takes, but at least least.
func (s *Stage) Span(share float64, least time.Duration) time.Duration {
	return max(least, time.Duration(share*float64(s.opt.Messages)/float64(s.opt.Rate)*float64(time.Second)))
}

// Event puts a line into the timeline.
func (s *Stage) Event(format string, args ...any) {
	t := s.tick()
	t.Event = fmt.Sprintf(format, args...)
	s.note(t)
}

// Evidence is kept in the result.
func (s *Stage) Evidence(name string, v any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.result.Evidence[name] = v
}

// Bit tells whether the harm was done; the last call counts.
func (s *Stage) Bit(yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.result.Bit = yes
}

// Broke tells of a broken promise.
func (s *Stage) Broke(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.result.Broken = append(s.result.Broken, fmt.Sprintf(format, args...))
}

// broke is Broke for what may happen often: the first three of a kind are told.
func (s *Stage) broke(kind, format string, args ...any) {
	s.mu.Lock()
	s.brokenBy[kind]++
	n := s.brokenBy[kind]
	s.mu.Unlock()
	if n <= 3 {
		s.Broke(kind+": "+format, args...)
	}
}

// Refused is the seconds between two times in which a request was answered 503.
func (s *Stage) Refused(a, b time.Time) int { return s.load.refused.between(a, b) }
