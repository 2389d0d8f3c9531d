//go:build linux

package promise

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/broker"
	"github.com/stormpost/stormpost/internal/devstack/teststack"
	"github.com/stormpost/stormpost/internal/message"
)

// The ledger is away in three ways under load: what is submitted is answered
// 202, by processes that were started meanwhile, too; and told as journaled.
// When it is back, all of it is in the ledger once, numbered 1..N, and sent once.
func TestLedgerAway(t *testing.T) {
	for name, mode := range map[string]fault{"refused": refuse, "hung": hang, "cut amid commits": cut} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			front, dsn := newProxy(t, s.dsn)
			s.env = append(s.env, "STORMPOST_DSN="+dsn, "STORMPOST_ACCEPT_PATIENCE=1s")
			first := s.start("api")
			apis := []string{first.api}
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("the first API logged:\n%s", first.logs)
				}
			})
			s.start("worker,recovery")
			c := newClient(t, s.key, func() string { return apis[0] })
			submitAll(t, c, 40, mixed("before"))
			if _, err := c.submit(t.Context(), order{Name: "twice", Stream: "stream-0"}); err != nil {
				t.Fatal(err)
			}

			front.set(mode)
			waitAway(t, c, apis[0])
			apis = append(apis, s.start("api").api) // started while the ledger is away
			away := make([]order, 80)
			answers := make([]answer, len(away))
			var wg sync.WaitGroup
			for i := range away {
				away[i] = mixed("away")(i)
				away[i].Class = []string{"transactional", "trigger", "campaign"}[i%3]
				wg.Go(func() {
					began := time.Now()
					a, err := c.post(t.Context(), apis[i%2], away[i], away[i].Name)
					if err != nil || a.status != http.StatusAccepted {
						t.Errorf("%s: %d %v", away[i].Name, a.status, err)
						return
					}
					if took := time.Since(began); took > 5*time.Second {
						t.Errorf("%s: answered after %s", away[i].Name, took)
					}
					answers[i] = a
					if err := c.remember(away[i].Name); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if t.Failed() {
				return
			}
			for i, a := range answers {
				if a.Messages[0].State != "journaled" || a.Messages[0].Sequence != 0 {
					t.Errorf("%s: %+v, want journaled without a number", away[i].Name, a.Messages[0])
				}
			}
			// What nobody may get: another request under a known key, and one that
			// expires before the ledger is back.
			second, err := c.post(t.Context(), apis[0], order{Name: "twice-other", Stream: "stream-9"}, "twice")
			if err != nil || second.status != http.StatusAccepted {
				t.Errorf("another request under a known key: %+v %v", second, err)
			}
			expires := time.Now().Add(2 * time.Second)
			old, err := c.post(t.Context(), apis[0], order{Name: "old-code", Stream: "stream-9", ExpiresAt: expires}, "old")
			if err != nil || old.status != http.StatusAccepted {
				t.Errorf("one that expires: %+v %v", old, err)
			}
			// Again: the same id. And every process tells, one started now as well.
			a, err := c.post(t.Context(), apis[1], away[0], away[0].Name)
			if err != nil || a.status != http.StatusAccepted || a.ID != answers[0].ID {
				t.Errorf("resubmitted: %+v %v", a, err)
			}
			apis = append(apis, s.start("api").api)
			for _, api := range apis {
				within(t, 5*time.Second, func() error {
					if status := ready(t, api); status != http.StatusOK {
						return fmt.Errorf("/readyz: %d, although the journal is there", status)
					}
					for _, a := range answers[:10] {
						if status, state := s.look(api, a.Messages[0].ID); status != http.StatusOK || state != "journaled" {
							return fmt.Errorf("%s: %d %s, want 200 journaled", a.Messages[0].ID, status, state)
						}
					}
					return nil
				})
				unknown := answers[0].Messages[0].ID[:10] + "abcd" + answers[0].Messages[0].ID[14:]
				if status, _ := s.look(api, unknown); status != http.StatusServiceUnavailable {
					t.Errorf("an id that nobody knows: %d while the ledger is away, want 503", status)
				}
			}
			if mode == cut && front.withheld() == 0 {
				t.Error("no answer was withheld")
			}

			time.Sleep(time.Until(expires)) // the time is what is tested
			front.set(none)
			if v := s.settle(c, func() string { return apis[1] }, 2*time.Minute); len(v.doubts) > 0 && mode != cut {
				t.Errorf("%d in doubt, although no provider failed", len(v.doubts))
			}
			s.complete(apis[1], 5)
			within(t, 10*time.Second, func() error {
				_, held := s.look(apis[2], second.Messages[0].ID)
				_, expired := s.look(apis[2], old.Messages[0].ID)
				if held != "held" || expired != "expired" {
					return fmt.Errorf("the second under a key is %s, want held; the one that expired is %s", held, expired)
				}
				return nil
			})
			for i, a := range answers {
				if status, state := s.look(apis[2], a.Messages[0].ID); status != http.StatusOK || state != "sent" {
					t.Errorf("%s: %d %s, want sent", away[i].Name, status, state)
				}
			}
		})
	}
}

// waitAway submits until the journal answers, which at first may take the
// ledger's patience.
func waitAway(t *testing.T, c *client, api string) {
	t.Helper()
	for i := range 20 {
		o := order{Name: fmt.Sprintf("turn-%d", i), Stream: "stream-0"}
		a, err := c.post(t.Context(), api, o, o.Name)
		if err != nil || a.status != http.StatusAccepted {
			t.Fatalf("%s: %d %v", o.Name, a.status, err)
		}
		if err := c.remember(o.Name); err != nil {
			t.Fatal(err)
		}
		if a.Messages[0].State == "journaled" {
			return
		}
	}
	t.Fatal("the ledger isn't away")
}

// within tries until check is content, for d.
func within(t *testing.T, d time.Duration, check func() error) {
	t.Helper()
	for deadline := time.Now().Add(d); ; time.Sleep(100 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Error(err)
			return
		}
	}
}

func ready(t *testing.T, api string) int {
	t.Helper()
	resp, err := http.Get(api + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// look asks for a message once, as its tenant.
func (s *stage) look(api, id string) (status int, state string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 15*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, api+"/v1/messages/"+id, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Error(err)
		return 0, ""
	}
	defer resp.Body.Close()
	var m struct{ State string }
	_ = json.NewDecoder(resp.Body).Decode(&m)
	return resp.StatusCode, m.State
}

// complete audits the streams stream-0 on: each has numbers 1..N.
func (s *stage) complete(api string, streams int) {
	s.t.Helper()
	for i := range streams {
		var audit struct {
			First, Last int64
			Missing     []json.RawMessage
			States      map[string]int64
		}
		s.getAs(s.key, fmt.Sprintf("%s/v1/streams/stream-%d/audit", api, i), &audit)
		if audit.First != 1 || len(audit.Missing) != 0 || audit.States["sent"] != audit.Last {
			s.t.Errorf("stream-%d: %+v, want 1..N, all sent", i, audit)
		}
	}
}

// A journal's worker is killed between the ledger's commits and its offsets',
// again and again: what comes a second time is known.
func TestJournalWorkerKilled(t *testing.T) {
	s := newStage(t)
	front, dsn := newProxy(t, s.dsn)
	s.env = append(s.env, "STORMPOST_DSN="+dsn, "STORMPOST_ACCEPT_PATIENCE=1s")
	api := s.start("api").api
	s.start("worker")
	c := newClient(t, s.key, func() string { return api })
	submitAll(t, c, 10, mixed("before"))
	front.set(refuse)
	waitAway(t, c, api)
	total := teststack.Scaled(8000)
	submitAll(t, c, total, mixed("away"))
	front.set(none)
	kafka, err := broker.New(broker.Config{Brokers: s.brokers, Prefix: s.prefix})
	if err != nil {
		t.Fatal(err)
	}
	db := s.conn()
	entered := func() (n int64) {
		if err := db.QueryRow(t.Context(), `select count(*) from message where entered_at is not null`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	between := 0 // kills that left committed entries without a committed offset
	for range 4 {
		was := entered()
		if was >= int64(total) {
			break
		}
		w := s.start("recovery")
		for deadline := time.Now().Add(time.Minute); entered() == was && time.Now().Before(deadline); {
		}
		w.kill()
		_, done, err := kafka.JournalBacklog(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if done[message.Transactional] < entered() {
			between++
		}
	}
	if between == 0 {
		t.Error("no kill came between a commit of the ledger and its offset's")
	}
	t.Logf("%d kills left entries without their offsets", between)
	s.start("recovery")
	if v := s.settle(c, c.urls, 2*time.Minute); len(v.doubts) > 0 {
		t.Errorf("%d in doubt, although no worker died", len(v.doubts))
	}
	s.complete(api, 5)
}

// With both stores away nothing is promised: 503, and when to come again.
func TestBothStoresAway(t *testing.T) {
	s, kafka := newStageWithKafka(t)
	front, dsn := newProxy(t, s.dsn)
	s.env = append(s.env, "STORMPOST_DSN="+dsn, "STORMPOST_ACCEPT_PATIENCE=1s")
	api := s.start("api").api
	s.start("worker,recovery")
	c := newClient(t, s.key, func() string { return api })
	submitAll(t, c, 10, mixed("before"))
	front.set(refuse)
	waitAway(t, c, api)
	if err := kafka.Kill(0); err != nil {
		t.Fatal(err)
	}
	within(t, 10*time.Second, func() error {
		if status := ready(t, api); status != http.StatusServiceUnavailable {
			return fmt.Errorf("/readyz: %d with both stores away, want 503", status)
		}
		return nil
	})
	for i := range 4 {
		o := order{Name: fmt.Sprintf("neither-%d", i), Stream: "stream-0"}
		path, body := o.request()
		b, _ := json.Marshal(body)
		began := time.Now()
		resp, err := c.raw(t.Context(), http.MethodPost, api+path, b, "Idempotency-Key", o.Name)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
			t.Errorf("%s: %s, Retry-After %q", o.Name, resp.Status, resp.Header.Get("Retry-After"))
		}
		t.Logf("refused after %s", time.Since(began).Round(time.Millisecond))
	}
	if err := kafka.Restart(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	// Once one of them is back, the same requests are kept, and in the end sent once.
	submitAll(t, c, 4, func(i int) order { return order{Name: fmt.Sprintf("neither-%d", i), Stream: "stream-0"} })
	front.set(none)
	if v := s.settle(c, c.urls, 2*time.Minute); len(v.doubts) > 0 {
		t.Errorf("%d in doubt, although no provider failed", len(v.doubts))
	}
	s.complete(api, 5)
}

// The ledger answers and can't take anything: it is read-only, full or slow, or has
// lost its counters. Accepting goes on; what it can be asked it still answers.
func TestLedgerCannotAccept(t *testing.T) {
	for name, test := range map[string]struct {
		away, back func(t *testing.T, db *pgx.Conn)
	}{
		"read-only": {readOnly, func(t *testing.T, db *pgx.Conn) {
			run(t, db, `do $$ begin execute format('alter database %I reset default_transaction_read_only', current_database()); end $$`)
			run(t, db, others)
		}},
		"without counters": {func(t *testing.T, db *pgx.Conn) {
			run(t, db, `create table kept as select * from counter; delete from counter`)
		}, func(t *testing.T, db *pgx.Conn) {
			run(t, db, `insert into counter select * from kept on conflict do nothing`)
		}},
		"out of disk":              {onInsert(`raise disk_full`), insertAgain},
		"slower than its deadline": {onInsert(`perform pg_sleep(8)`), insertAgain},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			db := s.conn()
			run(t, db, `set default_transaction_read_only = off`)
			api := s.start("api").api
			s.start("worker,recovery")
			c := newClient(t, s.key, func() string { return api })
			submitAll(t, c, 40, mixed("before"))
			test.away(t, db)
			waitAway(t, c, api)
			submitAll(t, c, 60, mixed("away"))
			test.back(t, db)
			if v := s.settle(c, c.urls, 2*time.Minute); len(v.doubts) > 0 {
				t.Errorf("%d in doubt, although no provider failed", len(v.doubts))
			}
			s.complete(api, 5)
		})
	}
}

// onInsert has every insertion of messages do something first.
func onInsert(what string) func(t *testing.T, db *pgx.Conn) {
	return func(t *testing.T, db *pgx.Conn) {
		run(t, db, `create function trouble() returns trigger language plpgsql as $$ begin `+what+`; return null; end $$`)
		run(t, db, `create trigger trouble before insert on message execute function trouble()`)
	}
}

func insertAgain(t *testing.T, db *pgx.Conn) { run(t, db, `drop function trouble cascade`) }

// others ends all other connections, which would go on as they began.
const others = `select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()`

func readOnly(t *testing.T, db *pgx.Conn) {
	t.Helper()
	run(t, db, `do $$ begin execute format('alter database %I set default_transaction_read_only = on', current_database()); end $$`)
	run(t, db, others)
}

func run(t *testing.T, db *pgx.Conn, sql string) {
	t.Helper()
	if _, err := db.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}
