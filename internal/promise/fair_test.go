//go:build linux

package promise

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/internal/app"
	"github.com/stormpost/stormpost/internal/devstack/teststack"
	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/sim"
)

// tenant makes another tenant, and a key of it to send and read with.
func (s *stage) tenant(name string) string {
	s.t.Helper()
	l, err := dedupe.Open(dedupe.Config{DSN: s.dsn})
	if err != nil {
		s.t.Fatal(err)
	}
	defer l.Close()
	key, _, err := app.CreateKey(s.t.Context(), l, name, []string{"*"}, []keyring.Scope{keyring.Send, keyring.Read}, false)
	if err != nil {
		s.t.Fatal(err)
	}
	return key
}

// draining waits until the backlog goes.
func (s *stage) draining() {
	s.t.Helper()
	for watch := s.sims.Store.Watch(); len(s.taken()) < 100; watch = s.sims.Store.Watch() {
		waitFor(s.t, watch, "the drain to begin")
	}
}

// resident is how much memory a process has, in bytes.
func (p *process) resident(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// A tenant's backlog of 1,000,000 in a lane (an eighth of that by default): each
// message of another tenant in the same lane reaches its provider within 5 s,
// and the worker needs no more memory for it.
func TestTenantDelaysNobody(t *testing.T) { tenantDelaysNobody(t, teststack.Scaled(1_000_000)) }

// The same with Kafka away, and the ledger feeding, oldest first.
func TestTenantDelaysNobodyWithoutKafka(t *testing.T) {
	tenantDelaysNobody(t, teststack.Scaled(160_000), "STORMPOST_BROKERS=127.0.0.1:1")
}

func tenantDelaysNobody(t *testing.T, backlog int, env ...string) {
	t.Helper()
	s := newStage(t)
	front := s.start("api", env...)
	api := front.api
	small := newClient(t, s.tenant("small"), func() string { return api })
	hog := newClient(t, s.key, func() string { return api })
	for _, faults := range []*sim.Faults{s.sims.SMTP.Faults, s.sims.FCM.Faults} {
		if err := faults.AddFault(sim.Fault{Step: sim.StepReply, Do: sim.Slow, Delay: 100 * time.Millisecond}); err != nil {
			t.Fatal(err)
		}
	}
	submitBatches(t, s, hog, api, backlog)
	worker := s.start("worker", env...)
	s.draining()
	var resident []int // while the backlog goes
	sent := make(map[string]time.Time)
	for i := range teststack.Scaled(640) {
		if i%teststack.Scaled(80) == 0 {
			resident = append(resident, worker.resident(t)>>20)
		}
		o := order{Name: fmt.Sprintf("small-%05d", i), Push: i%2 == 1, Class: "campaign"}
		if _, err := small.submit(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		sent[o.Name] = time.Now() // it is accepted
		time.Sleep(50 * time.Millisecond)
	}
	var waits []time.Duration
	var done int
	for deadline := time.Now().Add(time.Minute); len(waits) < len(sent); {
		watch := s.sims.Store.Watch()
		waits, done = waits[:0], 0
		if err := s.sims.Store.All(func(m sim.Taken) error {
			if at, ok := sent[m.Subject]; ok {
				waits = append(waits, m.ReceivedAt.Sub(at))
			} else {
				done++
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d have arrived, beside %d of the backlog's %d", len(waits), len(sent), done, backlog)
		}
		if len(waits) < len(sent) {
			<-watch
		}
	}
	slices.Sort(waits)
	longest := waits[len(waits)-1]
	resident = append(resident, worker.resident(t)>>20)
	t.Logf("%d messages beside a backlog of which %d of %d are still to go: p50 %s, max %s; the worker's memory in MiB: %d",
		len(waits), backlog-done, backlog, waits[len(waits)/2], longest, resident)
	if done >= backlog*9/10 {
		t.Error("the backlog was nearly gone before the others' messages")
	}
	if longest > 5*time.Second {
		t.Errorf("the longest waited for %s, promised is 5 s", longest)
	}
	if most := front.resident(t) >> 20; most > 400 {
		t.Errorf("the API needs %d MiB", most)
	} else {
		t.Logf("the API needs %d MiB", most)
	}
	if most := slices.Max(resident); most > 200 {
		t.Errorf("the worker needs %d MiB", most)
	}
	// Its buffers are full, or nearly so, by half the time.
	if warm, last := resident[len(resident)/2], resident[len(resident)-1]; last > warm+40 {
		t.Errorf("the worker grows: %d MiB", resident)
	}
	for name, n := range s.taken() {
		if n > 1 {
			t.Errorf("%s was sent %d times", name, n)
		}
	}
}
