package devstack

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// parentVariable makes the test binary a parent to be killed: it starts the
// named store in a folder, says so, and waits.
const parentVariable = "DEVSTACK_TEST_PARENT"

func TestMain(m *testing.M) {
	if store := os.Getenv(parentVariable); store != "" {
		if err := beParent(store, os.Args[len(os.Args)-1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func beParent(store, dir string) error {
	ctx := context.Background()
	switch store {
	case "postgres":
		p, err := StartPostgres(ctx, PostgresConfig{Dir: dir})
		if err != nil {
			return err
		}
		fmt.Println(p.Pid(), p.DSN())
	case "kafka":
		k, err := StartKafka(ctx, KafkaConfig{Dir: dir})
		if err != nil {
			return err
		}
		fmt.Println(k.Pid(0), k.Brokers()[0])
	case "broker":
		b, err := StartBroker(BrokerConfig{Dir: dir})
		if err != nil {
			return err
		}
		fmt.Println(os.Getpid(), b.Addr())
	}
	_, err := io.Copy(io.Discard, os.Stdin) // until killed, or the test is gone
	return err
}

// parent is another process that runs a store.
type parent struct {
	cmd  *exec.Cmd
	pid  int    // of the server
	addr string // of the store
}

func startParent(t *testing.T, store, dir string) *parent {
	t.Helper()
	cmd := exec.Command(os.Args[0], dir)
	cmd.Env = append(os.Environ(), parentVariable+"="+store)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); cmd.Process.Kill(); cmd.Wait() })
	p := &parent{cmd: cmd}
	if _, err := fmt.Fscan(stdout, &p.pid, &p.addr); err != nil {
		t.Fatalf("the parent of %s says nothing: %v", store, err)
	}
	return p
}

// kill9 ends the parent as nothing can prepare for.
func (p *parent) kill9(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.cmd.Wait()
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// noServers fails the test if a server is left in dir.
func noServers(t *testing.T, dir, exe string) {
	t.Helper()
	gone, err := waitGone(testContext(t), dir, exe, 10*time.Second)
	if err != nil || !gone {
		pids, _ := serversIn(testContext(t), dir, exe)
		t.Errorf("%s: %v left in %s (%v)", exe, pids, dir, err)
	}
}

func TestFindsNothingWithoutPrograms(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv("JAVA_HOME", "")
	_, err := StartKafka(testContext(t), KafkaConfig{Dir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "Java 17") {
		t.Errorf("without java: %v", err)
	}
	err = FetchKafka(testContext(t), t.TempDir(), discard)
	if err == nil || !strings.Contains(err.Error(), "apt-get install maven") {
		t.Errorf("without mvn: %v", err)
	}
	_, err = findPostgres("8")
	if err == nil || !strings.Contains(err.Error(), "version 8, which made this data folder") {
		t.Errorf("without the cluster's version: %v", err)
	}
}

// Many test binaries may want the jars at the same time: one fetches.
func TestKafkaJarsAreFetchedOnce(t *testing.T) {
	bin, cache := t.TempDir(), t.TempDir()
	runs := filepath.Join(bin, "runs")
	script := `#!/bin/sh
echo run >>` + runs + `
for arg; do case $arg in -DoutputDirectory=*) mkdir "${arg#*=}" && echo jar >"${arg#*=}/kafka.jar";; esac; done
`
	if err := os.WriteFile(filepath.Join(bin, "mvn"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	errs := make(chan error)
	for range 4 {
		go func() { errs <- FetchKafka(testContext(t), cache, discard) }()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	b, err := os.ReadFile(runs)
	if err != nil || string(b) != "run\n" {
		t.Errorf("mvn ran: %q, %v", b, err)
	}
	left, _ := filepath.Glob(filepath.Join(cache, "*"))
	if len(left) != 2 { // the jars and the lock
		t.Errorf("left in the cache: %v", left)
	}
}
