package teststack

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
	"go.uber.org/goleak"

	"github.com/stormpost/stormpost/internal/devstack"
)

const (
	postgresImage = "postgres:17"
	kafkaImage    = "apache/kafka:" + devstack.KafkaVersion
)

// dockerAnswers says whether a Docker on this machine does. A remote one won't
// do, because Kafka must be told beforehand at which address it is reached.
func dockerAnswers(ctx context.Context) (ok bool) {
	host := os.Getenv("DOCKER_HOST")
	if host == "" {
		host = "unix:///var/run/docker.sock"
	}
	path, local := strings.CutPrefix(host, "unix://")
	if _, err := os.Stat(path); !local || err != nil {
		return false
	}
	defer func() {
		if recover() != nil { // testcontainers panics where it finds no Docker
			ok = false
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	provider, err := testcontainers.NewDockerProvider()
	if err != nil {
		return false
	}
	return provider.Health(ctx) == nil // closes the provider, too
}

func postgresContainer(ctx context.Context) (store, error) {
	const user, password = "stormpost", "stormpost"
	port, bind, err := fixedPort("5432/tcp")
	if err != nil {
		return store{}, err
	}
	cmd := []string{"postgres"}
	for name, value := range pgSettings() {
		cmd = append(cmd, "-c", name+"="+value)
	}
	c, err := testcontainers.Run(ctx, postgresImage, bind,
		testcontainers.WithEnv(map[string]string{
			"POSTGRES_USER": user, "POSTGRES_PASSWORD": password, "POSTGRES_DB": "stormpost",
			"POSTGRES_INITDB_ARGS": "--encoding=UTF8 --locale=C",
		}),
		testcontainers.WithCmd(cmd...),
		// The image starts a server for its set-up first, then the real one.
		testcontainers.WithWaitStrategyAndDeadline(2*time.Minute,
			wait.ForLog("database system is ready to accept connections").WithOccurrence(2)))
	if err == nil {
		err = reachable(ctx, port)
	}
	if err != nil {
		return store{}, dropped(c, fmt.Errorf("run %s: %w", postgresImage, err))
	}
	dsn := fmt.Sprintf("postgres://%s:%s@127.0.0.1:%d/stormpost?sslmode=disable", user, password, port)
	return store{dsn, func(context.Context) error { return testcontainers.TerminateContainer(c) }}, nil
}

func kafkaContainer(ctx context.Context) (store, error) {
	port, bind, err := fixedPort("9092/tcp")
	if err != nil {
		return store{}, err
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	c, err := testcontainers.Run(ctx, kafkaImage, bind,
		testcontainers.WithEnv(map[string]string{
			"KAFKA_NODE_ID":                                          "1",
			"KAFKA_PROCESS_ROLES":                                    "broker,controller",
			"KAFKA_LISTENERS":                                        "PLAINTEXT://:9092,CONTROLLER://:9093",
			"KAFKA_ADVERTISED_LISTENERS":                             "PLAINTEXT://" + addr,
			"KAFKA_CONTROLLER_LISTENER_NAMES":                        "CONTROLLER",
			"KAFKA_LISTENER_SECURITY_PROTOCOL_MAP":                   "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
			"KAFKA_CONTROLLER_QUORUM_VOTERS":                         "1@localhost:9093",
			"KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR":                 "1",
			"KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR":         "1",
			"KAFKA_TRANSACTION_STATE_LOG_MIN_ISR":                    "1",
			"KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS":                 "0",
			"KAFKA_AUTO_CREATE_TOPICS_ENABLE":                        "false",
			"KAFKA_SHARE_COORDINATOR_STATE_TOPIC_MIN_ISR":            "1",
			"KAFKA_SHARE_COORDINATOR_STATE_TOPIC_REPLICATION_FACTOR": "1",
		}),
		testcontainers.WithWaitStrategyAndDeadline(2*time.Minute, wait.ForLog("Kafka Server started")))
	if err == nil {
		err = reachable(ctx, port)
	}
	if err != nil {
		return store{}, dropped(c, fmt.Errorf("run %s: %w", kafkaImage, err))
	}
	return store{addr, func(context.Context) error { return testcontainers.TerminateContainer(c) }}, nil
}

// fixedPort publishes a container's port at a port of loopback that is free now.
func fixedPort(inside string) (int, testcontainers.CustomizeRequestOption, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, nil, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	return port, func(req *testcontainers.GenericContainerRequest) error {
		if err := testcontainers.WithExposedPorts(inside)(req); err != nil {
			return err
		}
		return testcontainers.WithHostConfigModifier(func(host *container.HostConfig) {
			host.PortBindings = network.PortMap{network.MustParsePort(inside): {
				{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: strconv.Itoa(port)},
			}}
		})(req)
	}, nil
}

// reachable says whether a published port is at this process's own loopback: it
// isn't where the tests run in a container beside those they start.
// (There wait.ForListeningPort dials the bridge's address, where it isn't either.)
func reachable(ctx context.Context, port int) error {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return fmt.Errorf("reach the published port: %w", err)
	}
	return conn.Close()
}

// dropped removes a container that didn't become ready. Run returns one that
// it had made, else nil.
func dropped(c *testcontainers.DockerContainer, err error) error {
	if c != nil {
		if rmErr := testcontainers.TerminateContainer(c); rmErr != nil {
			return fmt.Errorf("%w; and its container stays: %w", err, rmErr)
		}
	}
	return err
}

// containerLeaks excepts the connection to testcontainers' reaper, which by
// design lasts as long as the process: its loss is what makes it clean up.
func containerLeaks() []goleak.Option {
	return []goleak.Option{goleak.IgnoreAnyFunction("github.com/testcontainers/testcontainers-go.(*Reaper).connect.func1")}
}
