package sim

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// childDir names the folder for a copy of this test that is a server to kill.
const childDir = "SIM_TEST_CHILD_DIR"

// serveChild serves on dir until it is killed.
func serveChild(dir string) error {
	store, err := OpenStore(dir, StoreOptions{})
	if err != nil {
		return err
	}
	s, err := StartSMTP(context.Background(), SMTPOptions{Store: store})
	if err != nil {
		return err
	}
	fmt.Println(s.Addr())
	_, err = bufio.NewReader(os.Stdin).ReadByte() // ends with the parent at the latest
	return err
}

// Whatever was answered before a kill is in the file after it, and the file can
// be used on.
func TestKillLosesNothingAnswered(t *testing.T) {
	dir := t.TempDir()
	var answered []string
	for round := range 3 {
		answered = append(answered, killed(t, dir, round)...)

		path := filepath.Join(dir, TakenFile)
		found := map[string]int{}
		if err := ReadTaken(path, func(x Taken) error { found[x.MessageID]++; return nil }); err != nil {
			t.Fatal(err)
		}
		for _, id := range answered {
			if found[id] != 1 {
				t.Fatalf("round %d: %s was answered 250, and is in the file %d times", round, id, found[id])
			}
		}
		s, err := OpenStore(dir, StoreOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if s.Count() != len(found) {
			t.Fatalf("round %d: recovered %d of %d", round, s.Count(), len(found))
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// killed runs a server, sends to it over several connections, kills it amid
// that and returns the ids that it had answered with 250.
func killed(t *testing.T, dir string, round int) []string {
	t.Helper()
	const clients, enough = 4, 100
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childDir+"="+dir)
	child.Stderr = os.Stderr
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}

	var mu sync.Mutex
	var answered []string
	var wg sync.WaitGroup
	for i := range clients {
		c := dialed(t, strings.TrimSpace(addr))
		wg.Go(func() {
			for n := 0; ; n++ {
				id := fmt.Sprintf("%d-%d-%d@x", round, i, n)
				if !sent(c, id) {
					return // it is dead
				}
				mu.Lock()
				answered = append(answered, id)
				if len(answered) == enough {
					if err := child.Process.Kill(); err != nil {
						t.Error(err)
					}
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if err := child.Wait(); err == nil {
		t.Error("the child ended by itself")
	}
	if len(answered) < enough {
		t.Fatalf("only %d answered", len(answered))
	}
	return answered
}

// sent sends one message and says whether the server took it. It fails quietly.
func sent(c *client, id string) bool {
	for _, step := range []struct {
		send, want string
		replies    int
	}{
		{"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n", "354", 3},
		{mailText("x", id) + ".\r\n", "250", 1},
	} {
		if _, err := c.conn.Write([]byte(step.send)); err != nil {
			return false
		}
		var line string
		for range step.replies {
			var err error
			if line, err = c.r.ReadString('\n'); err != nil {
				return false
			}
		}
		if !strings.HasPrefix(line, step.want) {
			c.Errorf("want %s, got %q", step.want, line)
			return false
		}
	}
	return true
}

func BenchmarkSMTP(b *testing.B) {
	for _, noSync := range []bool{false, true} {
		b.Run(fmt.Sprintf("noSync=%v", noSync), func(b *testing.B) {
			store, err := OpenStore(b.TempDir(), StoreOptions{NoSync: noSync})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { store.Close() })
			s := startSMTP(b, SMTPOptions{Store: store})
			b.SetParallelism(16)
			b.RunParallel(func(pb *testing.PB) {
				c := dialed(b, s.Addr())
				for pb.Next() {
					if !sent(c, "1@x") {
						b.Error("not sent")
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
		})
	}
}
