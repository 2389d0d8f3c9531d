package devstack

import (
	"errors"
	"net"
	"testing"
)

func startBroker(t *testing.T, dir string) *Broker {
	t.Helper()
	b, err := StartBroker(BrokerConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func TestBrokerKeepsItsDataAndPort(t *testing.T) {
	dir := t.TempDir()
	par := startParent(t, "broker", dir)
	client := kafkaClient(t, par.addr)
	createTopic(t, client, 1)
	produce(t, client, "one")
	client.Close()
	if _, err := StartBroker(BrokerConfig{Dir: dir}); !errors.Is(err, ErrInUse) {
		t.Errorf("a second start in one folder: %v", err)
	}
	par.kill9(t)

	b := startBroker(t, dir)
	if b.Addr() != par.addr {
		t.Errorf("at %s after a restart, was %s", b.Addr(), par.addr)
	}
	produce(t, kafkaClient(t, b.Addr()), "two")
	consume(t, []string{"one", "two"}, b.Addr())
	b.Close()
	b.Close()

	taken, err := net.Listen("tcp", par.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	moved := startBroker(t, dir)
	if moved.Addr() == par.addr {
		t.Errorf("at %s, which somebody else has", moved.Addr())
	}
	if moved.ClusterID() != b.ClusterID() {
		t.Errorf("cluster id %s, was %s", moved.ClusterID(), b.ClusterID())
	}
	consume(t, []string{"one", "two"}, moved.Addr())
	if other := startBroker(t, t.TempDir()); other.ClusterID() == b.ClusterID() {
		t.Error("two folders, one cluster id")
	}
}
