package app

import (
	"bytes"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/internal/bench"
	"github.com/stormpost/stormpost/internal/config"
	"github.com/stormpost/stormpost/internal/devstack/teststack"
	"github.com/stormpost/stormpost/internal/message"
)

// The bench measures the real stores, directly and through the API, and leaves no
// topic behind.
func TestBench(t *testing.T) {
	if testing.Short() {
		t.Skip("needs PostgreSQL and Kafka")
	}
	const count = 500
	for name, opt := range map[string]BenchOptions{
		"directly":        {},
		"through the API": {HTTP: true, Options: bench.Options{Rate: count / 3}}, // over two seconds: it tells
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config.Default()
			dsn := teststack.Database(t)
			cfg.DSN, cfg.Brokers = config.Secret(dsn), teststack.Kafka(t)
			var progress bytes.Buffer
			opt.Count, opt.Payload, opt.Streams, opt.Submitters, opt.Senders = count, 200, 3, 50, 50
			opt.Timeout, opt.Progress, opt.Output = 2*time.Minute, &progress, t.Output()
			r, err := Bench(t.Context(), cfg, opt)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%+v\n%s", r, &progress)
			for what, l := range map[string]bench.Latency{"accept": r.Accept, "end to end": r.EndToEnd} {
				if l.P50 <= 0 || l.P95 < l.P50 || l.P99 < l.P95 || l.Max < l.P99 {
					t.Errorf("%s: %+v", what, l)
				}
			}
			if r.Messages != count || r.AcceptPerSec <= 0 || r.EndPerSec <= 0 || r.EndPerSec > r.AcceptPerSec {
				t.Errorf("%+v", r)
			}
			if opt.Rate > 0 && (r.Elapsed < 2*time.Second || !regexp.MustCompile(`^ +2s  accepted \d+, delivered \d+ of 500\n`).MatchString(progress.String())) {
				t.Errorf("in %s it told %q", r.Elapsed, &progress)
			}
			checkCPU(t, r.CPU)
			l, err := dedupe.Open(dedupe.Config{DSN: dsn})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			lanes, err := l.AuditLanes(t.Context(), []message.Lane{{Class: message.Transactional, Channel: message.ChannelEmail}}, func(int64, int64) {})
			if err != nil || len(lanes) != 1 || lanes[0].States[message.StateSent] != count || lanes[0].Accepted != count {
				t.Errorf("the ledger has %+v, %v", lanes, err)
			}
			noTopics(t, cfg.Brokers[0], "stormpost-bench-")
		})
	}
}

// checkCPU wants this process's part and, where it can be told, each store's.
func checkCPU(t *testing.T, parts []bench.CPU) {
	t.Helper()
	if runtime.GOOS != "linux" {
		return
	}
	want := 1
	if os.Geteuid() == 0 { // whoever they run as
		want = 3
	}
	if len(parts) < want || parts[0].Part != "stormpost" || parts[0].Seconds <= 0 {
		t.Errorf("CPU %+v, want %d parts", parts, want)
	}
	for _, p := range parts {
		if p.Seconds < 0 || p.PerMicros != p.Seconds*1e6/500 {
			t.Errorf("CPU %+v", p)
		}
	}
}

// noTopics waits until Kafka has no topic whose name begins so.
func noTopics(t *testing.T, broker, prefix string) {
	t.Helper()
	conn, err := kafka.DialContext(t.Context(), "tcp", broker)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		partitions, err := conn.ReadPartitions()
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(partitions, func(p kafka.Partition) bool { return strings.HasPrefix(p.Topic, prefix) })
		if i < 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("topic %s is left", partitions[i].Topic)
		}
	}
}
