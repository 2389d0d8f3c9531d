package drill

import (
	"io"
	"net"
	"testing"
	"time"
)

// A link passes, delays, withholds answers, keeps silent and cuts, as it is set,
// and counts what it did.
func TestLink(t *testing.T) {
	echo, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { echo.Close() })
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
		}
	}()
	l, err := newLink(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.close() })
	l.lead(echo.Addr().String())
	ask := func() (took time.Duration, err error) {
		c, err := net.Dial("tcp", l.addr())
		if err != nil {
			return 0, err
		}
		defer c.Close()
		begin := time.Now()
		_ = c.SetDeadline(begin.Add(2 * time.Second))
		if _, err = c.Write([]byte("x")); err == nil {
			_, err = io.ReadFull(c, make([]byte, 1))
		}
		return time.Since(begin), err
	}
	const lag = 100 * time.Millisecond
	for _, c := range []struct {
		mode  trouble
		works bool
		least time.Duration
	}{{passing, true, 0}, {refusing, false, 0}, {lagging, true, 2 * lag}, {answers, false, 0}, {halfOpen, false, 2 * time.Second}, {passing, true, 0}} {
		before := l.hits.Load()
		l.set(c.mode, lag)
		took, err := ask()
		if (err == nil) != c.works || took < c.least {
			t.Errorf("%q: %v after %s", c.mode, err, took)
		}
		if hit := l.hits.Load() > before; c.mode != passing && !hit {
			t.Errorf("%q: nothing was counted", c.mode)
		}
	}
}
