package devstack

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/stormpost/stormpost/internal/atomicfile"
)

// kafkaStop is how long a node may take to shut down in good order. What it
// has acknowledged is in the page cache or on disk, and survives its SIGKILL.
const kafkaStop = 10 * time.Second

// settles is how long a node is busy with itself: it starts, makes topics, and
// compiles what it does.
const settles = 40 * time.Second

type kafkaNode struct {
	id            int
	dir           string
	port, ctlPort int    // for clients, and for the controllers among each other
	told          string // the address that others are told; empty: its own
	srv           *child // nil before the first start
}

func (n *kafkaNode) data() string       { return filepath.Join(n.dir, "data") }
func (n *kafkaNode) properties() string { return filepath.Join(n.dir, "server.properties") }

// newClusterID makes an id as Kafka writes its UUIDs: 16 bytes in unpadded
// URL-safe base64. A leading dash would look like an option.
func newClusterID() string {
	for {
		var b [16]byte
		rand.Read(b[:]) // never fails
		if id := base64.RawURLEncoding.EncodeToString(b[:]); id[0] != '-' {
			return id
		}
	}
}

// quickly has the JVM stop at its first compiler.
const quickly = "-XX:TieredStopAtLevel=1"

// prepare ends what an earlier run left of the node, writes its configuration
// and formats its storage when that is new.
func (k *Kafka) prepare(ctx context.Context, n *kafkaNode) error {
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return fmt.Errorf("make the folder: %w", err)
	}
	if err := endServers(ctx, n.dir, "java", []step{
		{syscall.SIGTERM, nil, kafkaStop},
		{syscall.SIGKILL, nil, killed},
	}); err != nil {
		return err
	}
	if _, err := os.Stat(n.data()); errors.Is(err, fs.ErrNotExist) {
		if err := k.format(ctx, n); err != nil {
			return err
		}
	}
	return k.writeProperties(n, n.data())
}

// format makes the storage in a folder beside its place and moves it there when
// complete, so that a kill in the middle leaves nothing that looks formatted.
func (k *Kafka) format(ctx context.Context, n *kafkaNode) error {
	fresh := n.data() + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return fmt.Errorf("clear unfinished storage: %w", err)
	}
	if err := k.writeProperties(n, fresh); err != nil {
		return err
	}
	cmd := k.command(ctx, n, "-Xshare:auto", quickly,
		"kafka.tools.StorageTool", "format", "--cluster-id", k.id, "--config", n.properties())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Start()
	if err == nil {
		k.aside(cmd.Process.Pid)
		err = cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("format the storage: %w: %s", err, strings.TrimSpace(out.String()))
	}
	if err := os.Rename(fresh, n.data()); err != nil {
		return fmt.Errorf("put the storage in its place: %w", err)
	}
	return atomicfile.SyncDir(n.dir)
}

// command is a Java program on Kafka's class path, working in the node's
// folder, by which the node is known again.
func (k *Kafka) command(ctx context.Context, n *kafkaNode, args ...string) *exec.Cmd {
	args = append([]string{"-cp", filepath.Join(k.jars, "*"),
		fmt.Sprintf("-Xms%dm", min(128, k.heap)), fmt.Sprintf("-Xmx%dm", k.heap), "-XX:+UseSerialGC", "-XX:MaxMetaspaceSize=128m",
		"-Djava.awt.headless=true", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
		"-Dorg.slf4j.simpleLogger.showDateTime=true"}, args...)
	cmd := exec.CommandContext(ctx, k.java, args...)
	cmd.Dir = n.dir
	return cmd
}

// writeProperties writes the node's configuration
// (https://kafka.apache.org/documentation/#brokerconfigs). The controllers are
// named statically, so all nodes may have other ports at the next start.
func (k *Kafka) writeProperties(n *kafkaNode, data string) error {
	replicas := strconv.Itoa(min(3, len(k.nodes)))
	majority := strconv.Itoa(min(2, len(k.nodes)))
	voters := make([]string, len(k.nodes))
	for i, v := range k.nodes {
		voters[i] = fmt.Sprintf("%d@%s", v.id, loopback(v.ctlPort))
	}
	props := map[string]string{
		"process.roles":                  "broker,controller",
		"node.id":                        strconv.Itoa(n.id),
		"controller.quorum.voters":       strings.Join(voters, ","),
		"listeners":                      "PLAINTEXT://" + loopback(n.port) + ",CONTROLLER://" + loopback(n.ctlPort),
		"advertised.listeners":           "PLAINTEXT://" + cmp.Or(n.told, loopback(n.port)),
		"listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
		"inter.broker.listener.name":     "PLAINTEXT",
		"controller.listener.names":      "CONTROLLER",
		"log.dirs":                       data,

		// Everything is made explicitly, as in production.
		"auto.create.topics.enable":  "false",
		"default.replication.factor": replicas, "min.insync.replicas": majority,
		"offsets.topic.replication.factor": replicas, "offsets.topic.num.partitions": "8",
		"transaction.state.log.replication.factor": replicas, "transaction.state.log.min.isr": majority,
		"transaction.state.log.num.partitions":             "8",
		"share.coordinator.state.topic.num.partitions":     "8",
		"share.coordinator.state.topic.replication.factor": replicas, "share.coordinator.state.topic.min.isr": majority,
		"group.initial.rebalance.delay.ms": "0",
		// A killed node is noticed, and may come back, sooner than after 9 s.
		"broker.session.timeout.ms": "4000", "broker.heartbeat.interval.ms": "500",
	}
	maps.Copy(props, k.settings)
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(props)) {
		fmt.Fprintf(&b, "%s=%s\n", key, escapeProperty(props[key]))
	}
	if err := os.WriteFile(n.properties(), []byte(b.String()), 0o600); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	return nil
}

// escapeProperty writes a value for java.util.Properties, where a backslash
// begins an escape.
func escapeProperty(v string) string { return strings.ReplaceAll(v, `\`, `\\`) }

// launch starts the node's process.
func (k *Kafka) launch(n *kafkaNode) (err error) {
	// The child's life isn't bound to the context of a call.
	args := []string{"kafka.Kafka", n.properties()}
	if k.was { // it isn't confined for long
		args = append([]string{fmt.Sprintf("-XX:ActiveProcessorCount=%d", runtime.GOMAXPROCS(0))}, args...)
	}
	if k.quick {
		args = append([]string{quickly}, args...)
	}
	cmd := k.command(context.Background(), n, args...)
	if n.srv, err = startChild(cmd, filepath.Join(n.dir, "server.log"), syscall.SIGKILL); err != nil {
		return err
	}
	k.aside(n.srv.pid())
	if srv := n.srv; k.was {
		time.AfterFunc(settles, func() {
			if !srv.ended() {
				unconfine(srv.pid())
			}
		})
	}
	return nil
}

// aside keeps a process on one processor until its node has settled: of a cluster
// that has been up before, others are at work beside it. A node's start takes as
// much as two processors, and elsewhere has a machine of its own for it.
func (k *Kafka) aside(pid int) {
	if k.was {
		confine(pid)
	}
}

// ready asks the node for the cluster's metadata until it lists itself and at
// least brokers nodes.
func (k *Kafka) ready(ctx context.Context, n *kafkaNode, brokers int) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(loopback(n.port)), kgo.DialTimeout(2*time.Second), kgo.RetryTimeout(2*time.Second))
	if err != nil {
		return err
	}
	defer client.Close()
	poll := time.NewTicker(100 * time.Millisecond)
	defer poll.Stop()
	for {
		err := n.lists(ctx, client, brokers)
		if err == nil {
			return nil
		}
		select {
		case <-n.srv.done:
			return n.srv.exitError()
		case <-ctx.Done():
			return fmt.Errorf("Kafka isn't ready: %w (%w); the end of %s:\n%s", ctx.Err(), err, n.srv.log, logTail(n.srv.log))
		case <-poll.C:
		}
	}
}

func (n *kafkaNode) lists(ctx context.Context, client *kgo.Client, brokers int) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = []kmsg.MetadataRequestTopic{} // none, where nil would be all
	// The seed itself is asked, not whichever broker the client knows by now.
	shard := client.SeedBrokers()[0].Request
	resp, err := shard(ctx, req)
	if err != nil {
		return err
	}
	meta := resp.(*kmsg.MetadataResponse)
	self := slices.ContainsFunc(meta.Brokers, func(b kmsg.MetadataResponseBroker) bool { return int(b.NodeID) == n.id })
	if !self || len(meta.Brokers) < brokers || meta.ControllerID < 0 {
		return fmt.Errorf("it knows of %d of %d nodes", len(meta.Brokers), brokers)
	}
	return nil
}

// kill ends the node by SIGKILL.
func (n *kafkaNode) kill() error {
	if n.srv == nil {
		return nil
	}
	if err := n.srv.signal(syscall.SIGKILL); err != nil {
		return err
	}
	if !n.srv.wait(context.Background(), killed) {
		return fmt.Errorf("Kafka (pid %d) doesn't end", n.srv.pid())
	}
	return nil
}

// stop ends the node in good order where it lets itself.
func (n *kafkaNode) stop(ctx context.Context) error {
	if n.srv == nil || n.srv.ended() {
		return nil
	}
	if err := errors.Join(n.srv.signal(syscall.SIGCONT), n.srv.signal(syscall.SIGTERM)); err != nil {
		return err
	}
	n.srv.wait(ctx, kafkaStop)
	return n.kill()
}
