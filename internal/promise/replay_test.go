//go:build linux

package promise

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/devstack/teststack"
	"github.com/stormpost/stormpost/internal/sim"
)

type replayed struct {
	ID      int64
	Status  string
	ToSend  int64 `json:"to_send"`
	Given   int64
	LeftOut map[string]struct{ Count int } `json:"left_out"`
}

// operate posts as an operator.
func (s *stage) operate(url string, in map[string]any, out any) {
	s.t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		s.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.oper)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	var raw json.RawMessage
	if err := json.NewDecoder(resp.Body).Decode(&raw); err != nil || resp.StatusCode/100 != 2 {
		s.t.Fatalf("POST %s: %s %s %v", url, resp.Status, raw, err)
	}
	if err := json.Unmarshal(raw, out); err != nil {
		s.t.Fatal(err)
	}
}

// A provider refuses much of what it gets, for good; then it is mended, and all
// of that is replayed, over a running flow. The processes that replay are killed
// by kill -9 between two steps and in the middle of one, once with its statement
// going on without them. Each refused message is sent, and nothing twice.
func TestReplayIsKilled(t *testing.T) {
	s := newStage(t)
	api := s.start("api").api
	s.start("worker")
	runners := []*slot{s.slot("recovery"), s.slot("recovery")}
	c := newClient(t, s.key, func() string { return api })
	for faults, fault := range map[*sim.Faults]sim.Fault{
		s.sims.SMTP.Faults: {Step: sim.StepRcpt, Do: sim.Answer, Code: 550, To: "refused"},
		s.sims.FCM.Faults:  {Step: sim.StepBody, Do: sim.Answer, Error: "INVALID_ARGUMENT", To: "refused"},
	} {
		if err := faults.AddFault(fault); err != nil {
			t.Fatal(err)
		}
	}
	// And some that nobody knows about.
	if err := s.sims.SMTP.AddFault(sim.Fault{Step: sim.StepReply, Do: sim.Drop, To: "unknown", Times: 3}); err != nil {
		t.Fatal(err)
	}
	refused, classes := teststack.Scaled(4800), []string{"transactional", "trigger", "campaign"}
	submitAll(t, c, refused, func(i int) order {
		return order{Name: fmt.Sprintf("refused-%05d", i), Push: i%2 == 1, Class: classes[i%3]}
	})
	submitAll(t, c, refused/2, func(i int) order {
		return order{Name: fmt.Sprintf("good-%05d", i), Push: i%2 == 1, Class: classes[i%3]}
	})
	submitAll(t, c, 3, func(i int) order { return order{Name: fmt.Sprintf("unknown-%05d", i)} })
	for deadline := time.Now().Add(2 * time.Minute); !s.quiet(api); time.Sleep(300 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not all were tried")
		}
	}
	for name := range s.taken() {
		if strings.HasPrefix(name, "refused") {
			t.Fatalf("a provider has %s: nothing is to be replayed", name)
		}
	}
	s.sims.SMTP.ClearFaults()
	s.sims.FCM.ClearFaults()
	stop := c.flow(20, mixed("new"))

	var look, r replayed
	s.operate(api+"/v1/replays", map[string]any{"all": true, "dry_run": true}, &look)
	if look.ToSend != int64(refused) || look.LeftOut["sent"].Count < refused/2 || look.LeftOut["in_doubt"].Count != 3 {
		t.Errorf("a dry run: %+v", look)
	}
	s.operate(api+"/v1/replays", map[string]any{"all": true, "rate": 200, "reason": "the provider is mended"}, &r)
	show := func() replayed {
		s.get(fmt.Sprint(api, "/v1/replays/", r.ID), &r)
		return r
	}
	kill := func() {
		for _, run := range runners {
			run.current().kill()
		}
	}
	restart := func() {
		for _, run := range runners {
			run.restart(t)
		}
	}
	given := func(most int64) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); show().Given < most; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("it doesn't come on: %+v", r)
			}
		}
	}
	given(1)
	kill()
	restart()
	for i, cutOff := range []bool{true, false} {
		given(int64(refused * (i + 1) / 4))
		s.inStep(kill, cutOff)
		restart()
		if show().Status != "running" {
			t.Fatalf("it is through: %+v; no kill was in the middle", r)
		}
	}
	given(int64(refused * 3 / 4))
	kill()
	restart()
	for deadline := time.Now().Add(time.Minute); show().Status != "done"; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it isn't done: %+v", r)
		}
	}
	stop()
	if r.ToSend != int64(refused) || r.Given != int64(refused) {
		t.Errorf("replay: %+v", r)
	}
	v := s.settle(c, func() string { return api }, 3*time.Minute)
	for name := range v.doubts {
		if !strings.HasPrefix(name, "unknown") {
			t.Errorf("%s is in doubt, although its answer was clear", name)
		}
	}
}

// inStep kills while a step of a replay waits for a lock in its middle. cutOff
// ends its statement with it; else it goes on and commits, with nobody to tell.
func (s *stage) inStep(kill func(), cutOff bool) {
	s.t.Helper()
	ctx := context.Background()
	conn, watch := s.conn(), s.conn()
	defer conn.Close(ctx)
	defer watch.Close(ctx)
	if _, err := conn.Exec(ctx, `begin; lock table decision in share mode`); err != nil {
		s.t.Fatal(err)
	}
	const stuck = `from pg_locks l join pg_class c on c.oid = l.relation join pg_stat_activity a on a.pid = l.pid
		where not l.granted and c.relname = 'decision' and a.datname = current_database() and a.query ~ 'replay_step'`
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var held bool
		if err := watch.QueryRow(ctx, `select exists (select `+stuck+`)`).Scan(&held); err != nil {
			s.t.Fatal(err)
		}
		if held {
			break
		}
		if time.Now().After(deadline) {
			s.t.Fatal("no step waits for the lock")
		}
	}
	kill()
	if cutOff {
		if _, err := watch.Exec(ctx, `select pg_terminate_backend(l.pid) `+stuck); err != nil {
			s.t.Fatal(err)
		}
	}
	if _, err := conn.Exec(ctx, `rollback`); err != nil {
		s.t.Fatal(err)
	}
}
