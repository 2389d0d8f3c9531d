package overhttp

import (
	"bytes"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/stormpost/stormpost/internal/message"
)

// frames reads whole requests of an HTTP/2 connection and has each answered.
func frames(c net.Conn, settings []http2.Setting, request func(f *http2.Framer, stream uint32) (more bool)) {
	if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	f := http2.NewFramer(c, c)
	if f.WriteSettings(settings...) != nil {
		return
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = f.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				_ = f.WritePing(true, frame.Data)
			}
		case *http2.DataFrame:
			if frame.StreamEnded() && !request(f, frame.StreamID) {
				return
			}
		}
	}
}

func answerStream(f *http2.Framer, stream uint32, status string) {
	var block bytes.Buffer
	_ = hpack.NewEncoder(&block).WriteField(hpack.HeaderField{Name: ":status", Value: status})
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
}

// A request that a GOAWAY says was not processed is tried on one more
// connection, and is Deferred if that one goes away, too. One that it says was,
// or may have been, is Unknown unless it is answered.
func TestGoAway(t *testing.T) {
	for name, c := range map[string]struct {
		first   bool // its connection's first request
		code    http2.ErrCode
		covered bool // by the GOAWAY's last stream
		answer  bool // on the same connection, after the GOAWAY
		conns   int32
		want    message.Outcome
	}{
		"not processed":               {false, http2.ErrCodeNo, false, false, 2, message.Sent},
		"not processed, as the first": {true, http2.ErrCodeNo, false, false, 2, message.Sent},
		"not processed, with a fault": {false, http2.ErrCodeInternal, false, false, 2, message.Sent},
		"first, with a fault":         {true, http2.ErrCodeEnhanceYourCalm, false, false, 2, message.Sent},
		"processed and answered":      {false, http2.ErrCodeNo, true, true, 1, message.Sent},
		"processed, then cut":         {false, http2.ErrCodeNo, true, false, 1, message.Unknown},
		"processed, cut, as first":    {true, http2.ErrCodeNo, true, false, 1, message.Unknown},
		"with a fault, then cut":      {false, http2.ErrCodeInternal, true, false, 1, message.Unknown},
	} {
		t.Run(name, func(t *testing.T) {
			var conns, hits atomic.Int32
			client := start(t, true, nil, func(n int, conn net.Conn) {
				conns.Add(1)
				requests := 0
				frames(conn, nil, func(f *http2.Framer, stream uint32) bool {
					requests++
					hits.Add(1)
					if n > 1 || !c.first && requests == 1 {
						answerStream(f, stream, "200")
						return true
					}
					last := stream
					if !c.covered {
						last = stream - min(stream, 2)
					}
					_ = f.WriteGoAway(last, c.code, []byte(`{"reason":"Shutdown"}`))
					if c.answer {
						answerStream(f, stream, "200")
					}
					// The client hangs up once it knows that nothing more comes.
					return c.answer || !c.covered
				})
			})
			if !c.first {
				if res, _ := post(t, client, nil); res.Outcome != message.Sent {
					t.Fatalf("the one before: %+v", res)
				}
			}
			res, lasts := post(t, client, nil)
			if res.Outcome != c.want || lasts != 1 || conns.Load() != c.conns {
				t.Errorf("result %+v over %d connections, last called %d times; want %v over %d", res, conns.Load(), lasts, c.want, c.conns)
			}
		})
	}
}

func TestGoAwayTwice(t *testing.T) {
	var hits atomic.Int32
	client := start(t, true, nil, func(_ int, conn net.Conn) {
		frames(conn, nil, func(f *http2.Framer, stream uint32) bool {
			hits.Add(1)
			_ = f.WriteGoAway(0, http2.ErrCodeNo, nil)
			return true
		})
	})
	res, lasts := post(t, client, nil)
	if res.Outcome != message.Deferred || res.Code != "GOAWAY" || lasts != 1 || hits.Load() != 2 {
		t.Errorf("result %+v after %d tries", res, hits.Load())
	}
}

// A server that allows one request at first, and more once it has answered it,
// gets one connection, however many wait.
func TestMaxConns(t *testing.T) {
	var conns, hits atomic.Int32
	client := start(t, true, func(c *Config) { c.Concurrency, c.MaxConns = 50, 1 }, func(_ int, conn net.Conn) {
		conns.Add(1)
		frames(conn, []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: 1}}, func(f *http2.Framer, stream uint32) bool {
			if hits.Add(1) == 1 {
				_ = f.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 100})
			}
			answerStream(f, stream, "200")
			return true
		})
	})
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			if res, _ := post(t, client, nil); res.Outcome != message.Sent {
				t.Errorf("result %+v", res)
			}
		})
	}
	wg.Wait()
	if conns.Load() != 1 || hits.Load() != 200 {
		t.Errorf("%d requests over %d connections", hits.Load(), conns.Load())
	}
}

// Whoever waits for room doesn't outlive its context, nor the client.
func TestMaxConnsWait(t *testing.T) {
	client := start(t, false, func(c *Config) { c.Concurrency, c.MaxConns = 3, 1 }, func(_ int, conn net.Conn) {
		_, _ = io.Copy(io.Discard, conn)
	})
	p, err := client.Reserve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error, 1)
	go func() {
		_, err := client.Reserve(t.Context())
		waiting <- err
	}()
	select {
	case err := <-waiting:
		t.Fatalf("a second place on a full connection: %v", err)
	case <-time.After(20 * time.Millisecond): // a chance to do wrong
	}
	client.Close()
	if err := <-waiting; err == nil {
		t.Error("a place after Close")
	}
	p.Release()
}
