//go:build linux

package promise

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/broker"
	"github.com/stormpost/stormpost/internal/devstack/teststack"
	"github.com/stormpost/stormpost/internal/message"
)

// evacuated is what stormpost evacuate --json says.
type evacuated struct {
	To      string
	Resumed bool
	Lanes   []struct {
		Lane, From string
		Backlog    int64
		Moved      bool
	}
}

// evacuate runs the command; the error is with what it printed.
func (s *stage) evacuate(args ...string) (e evacuated, err error) {
	s.t.Helper()
	path, err := binary()
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(path, append([]string{"evacuate", "--json"}, args...)...)
	cmd.Env = append(os.Environ(), s.env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return e, fmt.Errorf("%w: %s", err, stderr.String())
	}
	if err := json.Unmarshal(out, &e); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	return e, nil
}

// committed is how many records of the lanes the workers have finished on a
// cluster.
func (s *stage) committed(brokers []string) (n int64) {
	s.t.Helper()
	b, err := broker.New(broker.Config{Brokers: brokers, Prefix: s.prefix})
	if err != nil {
		s.t.Fatal(err)
	}
	sight, err := b.Look(s.t.Context())
	if err != nil {
		return 0
	}
	for place, at := range sight.Committed {
		if !strings.Contains(place, ".journal.") {
			n += at
		}
	}
	return n
}

// well makes the topics of a cluster, and waits until all is well there.
func (s *stage) well(brokers []string) *broker.Broker {
	s.t.Helper()
	b, err := broker.New(broker.Config{Brokers: brokers, Prefix: s.prefix})
	if err == nil {
		err = errors.Join(b.EnsureTopics(s.t.Context()), b.EnsureJournals(s.t.Context()))
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

func (s *stage) until(what string, limit time.Duration, so func() bool) {
	s.t.Helper()
	for end := time.Now().Add(limit); !so(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// Under load, the cluster dies: the lanes go to the standby by themselves. It
// comes back, and a command moves them back. Nothing is lost or doubled, all is
// answered 202, and each cluster carries what is placed on it.
func TestEvacuateUnderLoad(t *testing.T) {
	s, main := newStageWithKafka(t)
	standby := teststack.Kafka(t)
	s.env = append(s.env, "STORMPOST_CLUSTERS=b="+strings.Join(standby, " "), "STORMPOST_KAFKA_STANDBY=b", "STORMPOST_KAFKA_EVACUATE_AFTER=12s")
	s.well(main.Brokers())
	api := s.start("api,watch").api
	s.start("worker,recovery")
	s.start("worker,recovery")
	c := newClient(t, s.key, func() string { return api })
	before := 0
	s.until("the first cluster carries messages", 2*time.Minute, func() bool {
		before++
		submitAll(t, c, 5, mixed(fmt.Sprint("before-", before)))
		return s.committed(main.Brokers()) > 0
	})

	stop := c.flow(40, func(i int) order {
		o := mixed("load")(i)
		o.Class = []string{"transactional", "trigger", "campaign"}[i%3]
		return o
	})
	if err := main.Kill(0); err != nil {
		t.Fatal(err)
	}
	moved := s.opens(api, "evacuated", time.Now().Add(3*time.Minute))
	if !strings.Contains(moved.Summary, "moved to b") {
		t.Errorf("%+v", moved)
	}
	s.opens(api, "kafka_away/main", time.Now().Add(noticed))
	at := s.committed(standby)
	s.until("the standby carries messages", time.Minute, func() bool { return s.committed(standby) > at })
	if _, err := s.evacuate("--to", "main", "--dry-run"); err == nil {
		t.Error("a cluster that is away would be evacuated to")
	}

	if err := main.Restart(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	s.well(main.Brokers())
	back, err := s.evacuate("--to", "main")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range back.Lanes {
		if l.From != "b" || !l.Moved {
			t.Errorf("%+v", l)
		}
	}
	if len(back.Lanes) != 6 {
		t.Errorf("%d lanes", len(back.Lanes))
	}
	at = s.committed(main.Brokers())
	s.until("the first cluster carries messages again", time.Minute, func() bool { return s.committed(main.Brokers()) > at })
	s.resolves(api, moved)
	stop()
	if v := s.settle(c, func() string { return api }, 2*time.Minute); len(v.doubts) > 0 {
		t.Errorf("%d in doubt, although no worker died", len(v.doubts))
	}

	for _, bad := range []struct{ args, want string }{
		{"--to main", "is the active cluster"},
		{"--to nowhere", `no cluster "nowhere"`},
		{"--to b --lanes transactional.fax", "--lanes"},
		{"--to b --rate -1", "--rate"},
	} {
		if _, err := s.evacuate(strings.Fields(bad.args)...); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%s: %v, want %q", bad.args, err, bad.want)
		}
	}
}

// What only the old cluster's journal has is entered when it is back, though its
// lanes are elsewhere. And while the ledger is away, too, the standby's journal
// keeps what the old cluster can't.
func TestJournalOfAnEvacuatedCluster(t *testing.T) {
	s, main := newStageWithKafka(t)
	front, dsn := newProxy(t, s.dsn)
	s.env = append(s.env, "STORMPOST_CLUSTERS=b="+strings.Join(teststack.Kafka(t), " "), "STORMPOST_DSN="+dsn, "STORMPOST_ACCEPT_PATIENCE=1s")
	old := s.well(main.Brokers())
	api := s.start("api").api
	s.start("worker,recovery")
	c := newClient(t, s.key, func() string { return api })
	submitAll(t, c, 20, mixed("before"))
	s.settle(c, func() string { return api }, time.Minute)

	front.set(refuse)
	waitAway(t, c, api)
	var kept int64 // that only the old cluster has
	round := 0
	s.until("the old cluster's journal holds something", time.Minute, func() bool {
		round++
		submitAll(t, c, 20, mixed(fmt.Sprint("old-", round)))
		left, _, err := old.JournalBacklog(t.Context())
		kept = left[message.Transactional]
		return err == nil && kept > 0
	})
	if err := main.Kill(0); err != nil {
		t.Fatal(err)
	}
	submitAll(t, c, 20, mixed("standby"))
	front.set(none)
	if _, err := s.evacuate("--to", "b"); err != nil {
		t.Fatal(err)
	}
	submitAll(t, c, 20, mixed("after"))
	s.until("what the standby has is sent", time.Minute, func() bool {
		sent := 0
		for name := range s.taken() {
			if strings.HasPrefix(name, "standby") || strings.HasPrefix(name, "after") {
				sent++
			}
		}
		return sent == 40
	})
	unsent, taken := int64(0), s.taken()
	for name := range c.accepted() {
		if taken[name] == 0 {
			unsent++
		}
	}
	t.Logf("the old cluster's journal holds %d, and %d are not sent", kept, unsent)
	if unsent < 1 || unsent > kept {
		t.Errorf("%d are not sent, although only %d are out of reach", unsent, kept)
	}
	if err := main.Restart(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if v := s.settle(c, func() string { return api }, 2*time.Minute); len(v.doubts) > 0 {
		t.Errorf("%d in doubt, although no worker died", len(v.doubts))
	}
}
