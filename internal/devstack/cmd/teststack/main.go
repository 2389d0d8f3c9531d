// Command teststack starts PostgreSQL and Apache Kafka, runs a command with
// their addresses in STORMPOST_TEST_DSN and STORMPOST_TEST_KAFKA, stops both and
// removes all temporary files, whatever happened. It exits as the command did.
//
//	teststack -- go test ./...
//
// With -kafka=false it starts PostgreSQL alone. With -fetch it only fetches what
// Kafka needs from the network; -fetched says by its exit code whether that is
// there.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/stormpost/stormpost/internal/devstack"
	"github.com/stormpost/stormpost/internal/devstack/teststack"
)

func main() {
	fetch := flag.Bool("fetch", false, "fetch Apache Kafka into the cache, and exit")
	fetched := flag.Bool("fetched", false, "exit with 0 if Apache Kafka is in the cache")
	kafka := flag.Bool("kafka", true, "start Apache Kafka, too")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: teststack -fetch | teststack -fetched | teststack [-kafka=false] -- COMMAND [ARGUMENT...]")
	}
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	code, err := 0, error(nil)
	switch {
	case *fetch:
		err = devstack.FetchKafka(ctx, "", slog.Default())
	case *fetched:
		if there, cacheErr := devstack.KafkaFetched(""); cacheErr != nil || !there {
			code, err = 1, cacheErr
		}
	case flag.NArg() == 0:
		flag.Usage()
		code = 2
	default:
		code, err = run(ctx, *kafka, flag.Args())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "teststack:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// run gives the command and the stores a temporary folder that goes at the end,
// so that even tests which died leave nothing.
func run(ctx context.Context, kafka bool, command []string) (code int, err error) {
	tmp, err := os.MkdirTemp("", "stormpost-tests-*")
	if err != nil {
		return 0, fmt.Errorf("make a temporary folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	// Others may enter: PostgreSQL may have to run as another user.
	if err := errors.Join(os.Chmod(tmp, 0o711), os.Setenv("TMPDIR", tmp)); err != nil {
		return 0, err
	}
	dsn, brokers, stop, err := teststack.Start(ctx, kafka)
	if err != nil {
		return 0, err
	}
	defer func() {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, stop(stopCtx))
	}()
	env := append(os.Environ(), teststack.DSNVariable+"="+dsn)
	if kafka {
		env = append(env, teststack.KafkaVariable+"="+brokers)
	}
	return runCommand(ctx, command, env)
}

// runCommand runs the command in a process group of its own. When ctx ends the
// whole group is interrupted, and killed 20 s later.
func runCommand(ctx context.Context, command, env []string) (int, error) {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = 20 * time.Second
	err := cmd.Run()
	if cmd.Process != nil {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // whoever of the group is left
	}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return 130, errors.New("interrupted")
	case errors.As(err, &exit):
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}
