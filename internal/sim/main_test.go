package sim

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		fmt.Fprintln(os.Stderr, "child:", serveChild(dir))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

const patience = 20 * time.Second

func openStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := OpenStore(dir, StoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func startSMTP(t testing.TB, o SMTPOptions) *SMTPServer {
	t.Helper()
	if o.Store == nil {
		o.Store = openStore(t, t.TempDir())
	}
	s, err := StartSMTP(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func setFaults(t testing.TB, f interface{ SetFaults(...Fault) error }, faults ...Fault) {
	t.Helper()
	if err := f.SetFaults(faults...); err != nil {
		t.Fatal(err)
	}
}

// client speaks SMTP byte for byte.
type client struct {
	testing.TB
	conn net.Conn
	r    *bufio.Reader
}

func dial(t testing.TB, addr string) *client {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &client{t, conn, bufio.NewReader(conn)}
}

// dialed is a client past greeting and EHLO.
func dialed(t testing.TB, addr string) *client {
	t.Helper()
	c := dial(t, addr)
	c.want("220")
	c.do("EHLO client.example", "250")
	return c
}

func (c *client) send(s string) {
	c.Helper()
	if _, err := c.conn.Write([]byte(s)); err != nil {
		c.Fatalf("send %q: %v", s, err)
	}
}

// want reads one reply and checks how it begins. It returns all its lines.
func (c *client) want(prefix string) string {
	c.Helper()
	var all strings.Builder
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			c.Fatalf("want %q, got %q: %v", prefix, line, err)
		}
		all.WriteString(line)
		if len(line) < 4 || line[3] != '-' {
			break
		}
	}
	if !strings.HasPrefix(all.String(), prefix) {
		c.Fatalf("want %q, got %q", prefix, all.String())
	}
	return all.String()
}

func (c *client) do(command, prefix string) string {
	c.Helper()
	c.send(command + "\r\n")
	return c.want(prefix)
}

// wantEnd wants the server to say nothing more and close.
func (c *client) wantEnd() {
	c.Helper()
	b, err := c.r.ReadByte()
	if err == nil {
		c.Fatalf("want the end, got %q", b)
	}
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		c.Fatalf("want the end: %v", err)
	}
}

// envelope brings the session to where the message is expected.
func (c *client) envelope(to ...string) {
	c.Helper()
	c.do("MAIL FROM:<from@example.com>", "250")
	for _, a := range to {
		c.do("RCPT TO:<"+a+">", "250")
	}
	c.do("DATA", "354")
}

func mailText(subject, id string) string {
	return fmt.Sprintf("From: from@example.com\r\nSubject: %s\r\nMessage-ID: <%s>\r\n\r\nhello\r\n", subject, id)
}

func all(t testing.TB, s *Store) []Taken {
	t.Helper()
	var ts []Taken
	if err := s.All(func(x Taken) error { ts = append(ts, x); return nil }); err != nil {
		t.Fatal(err)
	}
	return ts
}
