//go:build linux

package promise

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/internal/app"
	"github.com/stormpost/stormpost/internal/devstack"
	"github.com/stormpost/stormpost/internal/devstack/teststack"
	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/sim"
)

func TestMain(m *testing.M) {
	defer func() {
		if buildDir != "" {
			os.RemoveAll(buildDir)
		}
	}()
	teststack.Main(m)
}

// stage is stores, simulators and keys for one test.
type stage struct {
	t    *testing.T
	dsn  string
	sims *sim.Sims
	key  string // send and read
	oper string // operator
	env  []string

	brokers []string
	prefix  string // of its topics

	mu   sync.Mutex
	runs []*process
}

// limits of this package's processes: short, so that tests needn't wait for
// what takes minutes by default.
const (
	replyLimit = 3 * time.Second
	claimValid = 4 * time.Second
)

func newStage(t *testing.T) *stage {
	t.Helper()
	if testing.Short() {
		t.Skip("real processes: not with -short")
	}
	return newStageOn(t, teststack.Database(t), teststack.Kafka(t))
}

// newStageWithKafka has an Apache Kafka of its own, to be killed.
func newStageWithKafka(t *testing.T) (*stage, *devstack.Kafka) {
	t.Helper()
	if testing.Short() {
		t.Skip("real processes: not with -short")
	}
	k := teststack.NewKafka(t, 1)
	return newStageOn(t, teststack.Database(t), k.Brokers()), k
}

// newStageWithPostgres has a PostgreSQL of its own, to be frozen.
func newStageWithPostgres(t *testing.T) (*stage, *devstack.Postgres) {
	t.Helper()
	if testing.Short() {
		t.Skip("real processes: not with -short")
	}
	pg := teststack.NewPostgres(t)
	return newStageOn(t, pg.DSN(), teststack.Kafka(t)), pg
}

func newStageOn(t *testing.T, dsn string, brokers []string) *stage {
	t.Helper()
	s := &stage{t: t, dsn: dsn, brokers: brokers}
	if _, err := dedupe.Migrate(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	l, err := dedupe.Open(dedupe.Config{DSN: dsn})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for key, scopes := range map[*string][]keyring.Scope{&s.key: {keyring.Send, keyring.Read}, &s.oper: {keyring.Operator}} {
		if *key, _, err = app.CreateKey(t.Context(), l, "acme", []string{"*"}, scopes, false); err != nil {
			t.Fatal(err)
		}
	}
	if s.sims, err = sim.StartAll(t.Context(), sim.Config{Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.sims.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(s.killAll)
	name := regexp.MustCompile("[^a-z0-9]+").ReplaceAllString(strings.ToLower(t.Name()), "-")
	s.prefix = "promise-" + name[:min(len(name), 60)] + "-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	s.env = []string{
		"STORMPOST_DSN=" + dsn,
		"STORMPOST_BROKERS=" + strings.Join(brokers, ","),
		"STORMPOST_KAFKA_PREFIX=" + s.prefix,
		"STORMPOST_DATA_DIR=" + t.TempDir(),
		"STORMPOST_LISTEN=127.0.0.1:0", "STORMPOST_METRICS_LISTEN=127.0.0.1:0",
		"STORMPOST_LEDGER_BEAT_EVERY=500ms", "STORMPOST_ACCEPT_PATIENCE=4s",
		"STORMPOST_DELIVERY_CLAIM_VALID=" + claimValid.String(),
		"STORMPOST_DELIVERY_RETRY_BASE=400ms", "STORMPOST_DELIVERY_RETRY_MAX=3s",
		"STORMPOST_SMTP_ADDR=" + s.sims.SMTP.Addr(), "STORMPOST_SMTP_REPLY_LIMIT=" + replyLimit.String(),
		"STORMPOST_FCM_SERVICE_ACCOUNT=file:" + s.sims.ServiceAccountFile, "STORMPOST_FCM_BASE_URL=" + s.sims.FCM.URL(),
		"STORMPOST_FCM_REPLY_LIMIT=" + replyLimit.String(),
	}
	return s
}

func (s *stage) keep(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runs = append(s.runs, p)
}

func (s *stage) killAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.runs {
		p.kill()
	}
	if races := teststack.Races(buildDir); races != "" {
		s.t.Errorf("the processes race:\n%s", races)
	}
	if s.t.Failed() && len(s.runs) > 0 {
		s.t.Logf("the last process logged:\n%s", s.runs[len(s.runs)-1].logs)
	}
}

// sql runs a statement in the ledger: to set a scene, never to judge.
func (s *stage) conn() *pgx.Conn {
	s.t.Helper()
	c, err := pgx.Connect(s.t.Context(), s.dsn)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

// taken counts what the providers have, by the names of the orders.
func (s *stage) taken() map[string]int {
	s.t.Helper()
	counts := make(map[string]int)
	if err := s.sims.Store.All(func(t sim.Taken) error {
		counts[t.Subject]++
		return nil
	}); err != nil {
		s.t.Fatal(err)
	}
	return counts
}

// doubt is what the API says of a message in doubt.
type doubt struct {
	ID      string
	Cause   string
	Message struct{ To string }
}

// name is the order's name in a doubt's recipient.
func (d doubt) name() string {
	n := strings.TrimPrefix(d.Message.To, "device-token-")
	n, _, _ = strings.Cut(n, "@")
	return n
}

func (s *stage) doubts(api string) map[string]doubt {
	s.t.Helper()
	all := make(map[string]doubt)
	cursor := ""
	for {
		var page struct {
			Items []doubt
			Next  string
		}
		s.get(api+"/v1/doubts?limit=200&cursor="+cursor, &page)
		for _, d := range page.Items {
			all[d.name()] = d
		}
		if page.Next == "" {
			return all
		}
		cursor = page.Next
	}
}

// get reads the API as an operator, and waits out a store that is away.
func (s *stage) get(url string, out any) {
	s.t.Helper()
	s.getAs(s.oper, url, out)
}

func (s *stage) getAs(key, url string, out any) {
	s.t.Helper()
	for try := 0; ; try++ {
		err := func() error {
			req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, strings.TrimSuffix(url, "&cursor="), nil)
			if err != nil {
				return err
			}
			req.Header.Set("Authorization", "Bearer "+key)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("GET %s: %s", url, resp.Status)
			}
			return json.NewDecoder(resp.Body).Decode(out)
		}()
		if err == nil {
			return
		}
		if try == 50 {
			s.t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func (s *stage) decide(api string, d doubt, decision string) {
	s.t.Helper()
	body := fmt.Sprintf(`{"decision":%q,"reason":"the test looked at the provider's file"}`, decision)
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, api+"/v1/doubts/"+d.ID, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.oper)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		s.t.Fatalf("decide %s: %s", d.ID, resp.Status)
	}
}

// verdict is what became of all that the client's file names.
type verdict struct {
	accepted int
	doubts   map[string]doubt // as they were before they were decided
}

// logCursors says of what nobody claimed whether its lane's cursor has passed it:
// then nobody ever will, and else the workers have it in hand.
func (s *stage) logCursors() {
	rows, _ := s.conn().Query(s.t.Context(), `
		select m.recipient, m.n, l.cursor >= m.n from message m join lane l on l.code = m.n >> 57
		where not exists (select from attempt a where a.n = m.n) and not exists (select from waiting w where w.n = m.n) order by m.n limit 20`)
	var to string
	var n int64
	var passed bool
	if _, err := pgx.ForEachRow(rows, []any{&to, &n, &passed}, func() error {
		s.t.Logf("%s (%d) was never claimed; the cursor has passed it: %v", to, n, passed)
		return nil
	}); err != nil {
		s.t.Errorf("ask for what nobody claimed: %v", err)
	}
}

// settle waits until every accepted message is with a provider or in doubt,
// then decides each doubt by what the provider has: sent if it has it, resend
// if not; and waits until the providers have all of them, each once.
func (s *stage) settle(c *client, api func() string, patience time.Duration) verdict {
	s.t.Helper()
	accepted := c.accepted()
	v := verdict{accepted: len(accepted)}
	deadline := time.Now().Add(patience)
	for {
		watch := s.sims.Store.Watch()
		taken := s.taken()
		v.doubts = s.doubts(api())
		var open []string
		for name := range accepted {
			if _, ok := v.doubts[name]; taken[name] == 0 && !ok {
				open = append(open, name)
			}
		}
		// An attempt may still be open, and become a doubt, although the
		// provider has the message: what counts is that none is lost.
		if len(open) == 0 {
			break
		}
		if time.Now().After(deadline) {
			slices.Sort(open)
			for _, name := range open[:min(3, len(open))] {
				var page json.RawMessage
				s.get(api()+"/v1/messages?limit=5&to="+name+"@example.net", &page)
				s.t.Logf("%s: %s", name, page)
			}
			s.logCursors()
			s.t.Fatalf("lost: %d of %d accepted messages are neither with a provider nor in doubt: %s", len(open), len(accepted), strings.Join(open[:min(5, len(open))], ", "))
		}
		select {
		case <-watch:
		case <-time.After(500 * time.Millisecond):
		}
	}
	for {
		now := s.doubts(api())
		taken := s.taken()
		missing := 0
		for name := range accepted {
			if taken[name] == 0 {
				missing++
			}
		}
		for name, d := range now {
			if taken[name] > 0 {
				s.decide(api(), d, "sent")
			} else {
				s.decide(api(), d, "resend")
			}
		}
		maps.Copy(v.doubts, now)
		if missing == 0 && len(now) == 0 && s.quiet(api()) {
			break
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%d messages are missing and %d in doubt", missing, len(now))
		}
		time.Sleep(300 * time.Millisecond)
	}
	doubled := 0
	for name, n := range s.taken() {
		if n > 1 {
			doubled++
			s.t.Errorf("doubled: a provider has %s %d times", name, n)
		}
		if !accepted[name] && strings.Contains(name, "-") {
			s.t.Errorf("a provider has %s, which was never answered 202", name)
		}
	}
	s.t.Logf("accepted %d, in doubt %d, doubled %d, lost 0", v.accepted, len(v.doubts), doubled)
	return v
}

// quiet says whether no message is open: nothing more will be handed over.
func (s *stage) quiet(api string) bool {
	s.t.Helper()
	var audit struct {
		Total struct{ Queued, Waiting, Sending int }
	}
	s.get(api+"/v1/audit", &audit)
	return audit.Total.Queued+audit.Total.Waiting+audit.Total.Sending == 0
}
