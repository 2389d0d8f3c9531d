package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func startKafka(t *testing.T, cfg KafkaConfig) *Kafka {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: this test needs Apache Kafka")
	}
	k, err := StartKafka(testContext(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for i := range k.nodes {
			k.Kill(i) // a test's end needs no good order
		}
		if err := k.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		for _, n := range k.nodes {
			noServers(t, n.dir, "java")
		}
	})
	return k
}

func kafkaClient(t *testing.T, brokers ...string) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.DefaultProduceTopic("kept"),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"kept": {0: kgo.NewOffset().AtStart()}}),
		kgo.MetadataMinAge(100*time.Millisecond), kgo.MaxProduceRequestsInflightPerBroker(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func createTopic(t *testing.T, client *kgo.Client, replicas int16) {
	t.Helper()
	topic := kmsg.NewCreateTopicsRequestTopic()
	topic.Topic, topic.NumPartitions, topic.ReplicationFactor = "kept", 1, replicas
	req := kmsg.NewPtrCreateTopicsRequest()
	req.Topics, req.TimeoutMillis = append(req.Topics, topic), 30_000
	resp, err := req.RequestWith(testContext(t), client)
	if err != nil {
		t.Fatal(err)
	}
	if code := resp.Topics[0].ErrorCode; code != 0 {
		t.Fatalf("create the topic: error code %d", code)
	}
}

func produce(t *testing.T, client *kgo.Client, value string) {
	t.Helper()
	if err := client.ProduceSync(testContext(t), kgo.StringRecord(value)).FirstErr(); err != nil {
		t.Fatalf("produce %s: %v", value, err)
	}
}

// consume reads the topic from its start until it has as many records as wanted.
func consume(t *testing.T, want []string, brokers ...string) {
	t.Helper()
	client := kafkaClient(t, brokers...)
	var got []string
	for ctx := testContext(t); len(got) < len(want); {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("consumed %q, want %q", got, want)
		}
		fetches.EachRecord(func(r *kgo.Record) { got = append(got, string(r.Value)) })
	}
	if !slices.Equal(got, want) {
		t.Errorf("consumed %q, want %q", got, want)
	}
}

func TestKafkaKillRestartFreeze(t *testing.T) {
	dir := t.TempDir()
	k := startKafka(t, KafkaConfig{Dir: dir})
	client := kafkaClient(t, k.Brokers()...)
	createTopic(t, client, 1)
	produce(t, client, "one")
	if _, err := StartKafka(testContext(t), KafkaConfig{Dir: dir}); !errors.Is(err, ErrInUse) {
		t.Errorf("a second start in one folder: %v", err)
	}

	brokers, pid := k.Brokers(), k.Pid(0)
	if err := k.Kill(0); err != nil {
		t.Fatal(err)
	}
	if k.Pid(0) != 0 {
		t.Errorf("pid %d after Kill", k.Pid(0))
	}
	begin := time.Now()
	if err := k.Restart(testContext(t), 0); err != nil {
		t.Fatal(err)
	}
	t.Logf("restarted in %v", time.Since(begin))
	if !slices.Equal(k.Brokers(), brokers) || k.Pid(0) == pid {
		t.Errorf("restarted as %v pid %d, was %v pid %d", k.Brokers(), k.Pid(0), brokers, pid)
	}
	produce(t, client, "two")

	if err := k.Signal(0, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	frozen(t, k.Pid(0))
	produced := make(chan error, 1)
	go func() { produced <- client.ProduceSync(testContext(t), kgo.StringRecord("three")).FirstErr() }()
	select {
	case err := <-produced:
		t.Fatalf("a frozen node answered: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	if err := k.Signal(0, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-produced; err != nil {
		t.Errorf("after the thaw: %v", err)
	}

	if err := k.Stop(testContext(t)); err != nil {
		t.Fatal(err)
	}
	again := startKafka(t, KafkaConfig{Dir: dir})
	if again.ClusterID() != k.ClusterID() {
		t.Errorf("cluster id %s after a restart, was %s", again.ClusterID(), k.ClusterID())
	}
	consume(t, []string{"one", "two", "three"}, again.Brokers()...)
}

// frozen waits until every thread of a process has stopped, which takes a moment
// on a busy machine.
func frozen(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil || len(tasks) == 0 {
			t.Fatalf("threads of %d: %v", pid, err)
		}
		running := slices.ContainsFunc(tasks, func(task string) bool {
			stat, _ := os.ReadFile(task)
			_, state, _ := strings.Cut(string(stat), ") ")
			return !strings.HasPrefix(state, "T")
		})
		if !running {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the process doesn't stop")
		}
	}
}

func TestKafkaAfterItsParentWasKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: this test needs Apache Kafka")
	}
	dir := t.TempDir()
	par := startParent(t, "kafka", dir)
	client := kafkaClient(t, par.addr)
	createTopic(t, client, 1)
	produce(t, client, "one")
	client.Close()
	par.kill9(t)
	k := startKafka(t, KafkaConfig{Dir: dir})
	if k.Pid(0) == par.pid {
		t.Error("the orphan lives")
	}
	consume(t, []string{"one"}, k.Brokers()...)
}

func TestKafkaThreeNodes(t *testing.T) {
	k := startKafka(t, KafkaConfig{Dir: t.TempDir(), Nodes: 3, Settings: map[string]string{"num.io.threads": "2"}})
	if len(k.Brokers()) != 3 {
		t.Fatalf("brokers %v", k.Brokers())
	}
	client := kafkaClient(t, k.Brokers()...)
	createTopic(t, client, 3)
	produce(t, client, "one")
	if err := k.Kill(1); err != nil {
		t.Fatal(err)
	}
	produce(t, client, "two")
	if err := k.Restart(testContext(t), 1); err != nil {
		t.Fatal(err)
	}
	produce(t, client, "three")
	consume(t, []string{"one", "two", "three"}, k.Brokers()...)
}

func TestKafkaTellsWhyItDoesNotStart(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: this test needs Apache Kafka")
	}
	_, err := StartKafka(testContext(t), KafkaConfig{Dir: t.TempDir(), Settings: map[string]string{"num.io.threads": "no number"}})
	if err == nil || !strings.Contains(err.Error(), "num.io.threads") {
		t.Errorf("a wrong setting: %v", err)
	}
	if _, err := StartKafka(testContext(t), KafkaConfig{Dir: t.TempDir(), Nodes: 3, Ports: []int{1}}); err == nil {
		t.Error("one port for three nodes was taken")
	}
}
