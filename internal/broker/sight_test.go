package broker

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/devstack/teststack"
)

// look looks until the cluster answers, with what was committed.
func look(t *testing.T, b *Broker) Sight {
	t.Helper()
	ctx := patient(t)
	for {
		s, err := b.Look(ctx)
		if err == nil && s.Committed != nil {
			return s
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

func TestSinceTellsWhatWasLost(t *testing.T) {
	was := Sight{Cluster: "one", Ends: map[string]int64{"t/0": 10, "t/1": 5}, Committed: map[string]int64{"t/0": 8}}
	for name, c := range map[string]struct {
		now  Sight
		want string
	}{
		"goes on":          {Sight{Cluster: "one", Ends: map[string]int64{"t/0": 12, "t/1": 5, "u/0": 0}, Committed: map[string]int64{"t/0": 9}}, ""},
		"no coordinator":   {Sight{Cluster: "one", Ends: map[string]int64{"t/0": 12, "t/1": 5}}, ""},
		"another":          {Sight{Cluster: "two", Ends: map[string]int64{"t/0": 12, "t/1": 5}, Committed: map[string]int64{"t/0": 9}}, "another Kafka cluster"},
		"end went back":    {Sight{Cluster: "one", Ends: map[string]int64{"t/0": 9, "t/1": 5}, Committed: map[string]int64{"t/0": 8}}, "t/0 went back"},
		"topic is gone":    {Sight{Cluster: "one", Ends: map[string]int64{"t/0": 10}, Committed: map[string]int64{"t/0": 8}}, "t/1 is gone"},
		"commit is gone":   {Sight{Cluster: "one", Ends: map[string]int64{"t/0": 10, "t/1": 5}, Committed: map[string]int64{}}, "committed of Kafka's t/0 is gone"},
		"commit went back": {Sight{Cluster: "one", Ends: map[string]int64{"t/0": 10, "t/1": 5}, Committed: map[string]int64{"t/0": 7}}, "went back to 7"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := c.now.Since(&was); c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
	first := Sight{Cluster: "one"}
	if got := first.Since(&Sight{}); got != "" {
		t.Errorf("the first sight: %q", got)
	}
	if s := (Sight{Cluster: "one"}).With(&was); s.Committed["t/0"] != 8 {
		t.Error("what was committed is forgotten while the coordinator is away")
	}
}

func TestLookSeesATopicMadeAnew(t *testing.T) {
	b := sharedBroker(t)
	if s := look(t, b); len(s.Missing) != 3 || len(s.Ends) != 24 { // the journals
		t.Errorf("%d partitions, without %v", len(s.Ends), s.Missing)
	}
	in := newInbox(t)
	_, stop := consume(t, b, in)
	p := publisher(t, b)
	all := items(urgent, 1, 500, 100)
	p.Publish(all)
	in.all(t, all)
	stop()
	was := look(t, b)
	if what := was.Since(&was); what != "" {
		t.Error(what)
	}
	if err := b.RemoveTopics(patient(t)); err != nil {
		t.Fatal(err)
	}
	gone(t, b, 6)
	now := look(t, b)
	if what := now.Since(&was); !strings.Contains(what, "is gone") || len(now.Missing) != 9 {
		t.Errorf("%q, missing %v", what, now.Missing)
	}
	if err := b.EnsureTopics(patient(t)); err != nil {
		t.Fatal(err)
	}
	now = look(t, b)
	if what := now.Since(&was); !strings.Contains(what, "went back") {
		t.Errorf("%q", what)
	}
}

// The cluster is wiped under a consumer that holds partitions: it joins the new
// one's group as soon as it is told to.
func TestWipedClusterIsReadAnew(t *testing.T) {
	k := teststack.NewKafka(t, 1)
	log := newLines()
	b := newBroker(t, k.Brokers(), func(c *Config) { c.Logger = slog.New(log) })
	if err := b.EnsureTopics(patient(t)); err != nil {
		t.Fatal(err)
	}
	in := newInbox(t)
	c, _ := consume(t, b, in)
	p := publisher(t, b)
	old := items(urgent, 1, 1000, 100)
	p.Publish(old)
	in.all(t, old)
	was := look(t, b)

	if err := k.Wipe(patient(t)); err != nil {
		t.Fatal(err)
	}
	up := time.Now()
	now := look(t, b)
	// The consumer may have made its own topics anew by then, and no others.
	if what := now.Since(&was); !strings.Contains(what, "another Kafka cluster") || len(now.Missing) < 3 {
		t.Errorf("%q, missing %v", what, now.Missing)
	}
	if err := b.EnsureTopics(patient(t)); err != nil {
		t.Fatal(err)
	}
	c.Rejoin()
	fresh := items(urgent, 100_000, 50, 100)
	p.Publish(fresh)
	in.all(t, fresh)
	if took := time.Since(up); took > 30*time.Second {
		t.Errorf("the new cluster's first delivery came %s after it was up", took)
	} else {
		t.Logf("the new cluster's first delivery came %s after it was up", took)
	}
}

// The index of a journal that was wiped forgets what was only there.
func TestTailStartsAnew(t *testing.T) {
	b := newBroker(t, teststack.Kafka(t))
	if err := b.EnsureJournals(patient(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.RemoveTopics(context.Background()) })
	tail := runTail(t, b)
	j := journaled(t, "transactional", "k", "hello")
	write(t, b, encodeJournaled(b.journalTopic(j.Lane.Class), j))
	id := j.ID()
	found := func() (bool, bool) { j, known := tail.Find(id); return j != nil, known }
	ctx := patient(t)
	for yes := false; !yes; yes, _ = found() {
		if ctx.Err() != nil {
			t.Fatal("the tail doesn't find it")
		}
	}
	if err := b.RemoveTopics(patient(t)); err != nil {
		t.Fatal(err)
	}
	// What a node tells lags: it may still know those that were removed.
	for missing := []string(nil); len(missing) < len(b.journals().topics); {
		var err error
		if missing, err = b.missing(ctx, b.journals().topics); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.EnsureJournals(patient(t)); err != nil {
		t.Fatal(err)
	}
	tail.Restart()
	for yes, known := found(); yes || !known; yes, known = found() {
		if ctx.Err() != nil {
			t.Fatalf("it is still found: %v %v", yes, known)
		}
	}
}
