package smtp

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/mail"
	"github.com/stormpost/stormpost/internal/message"
)

func kilobyte(n int) *message.Envelope {
	env := envelope(n)
	env.Content.Email.Text = strings.Repeat("A line of text of some forty characters.\r\n", 1024/42)
	return env
}

func BenchmarkCompose(b *testing.B) {
	env := kilobyte(1)
	var msg, wire bytes.Buffer
	b.ReportAllocs()
	for b.Loop() {
		msg.Reset()
		wire.Reset()
		d, err := mail.NewDraft(env)
		if err == nil {
			err = mail.Compose(&msg, env, &d, time.Unix(1_772_362_800, 0), true)
		}
		if err != nil {
			b.Fatal(err)
		}
		stuff(&wire, msg.Bytes())
	}
}

// BenchmarkSend is messages over eight connections to a server that does as
// little as can be.
func BenchmarkSend(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			served.Go(func() { sink(nc) })
		}
	})
	p, err := New(Config{Name: "relay", Addr: ln.Addr().String(), Connections: 8, MaxPerConnection: 1 << 30})
	if err != nil {
		b.Fatal(err)
	}
	env := kilobyte(1)
	jobs := make(chan struct{})
	var senders sync.WaitGroup
	for range 8 {
		senders.Go(func() {
			for range jobs {
				slot, err := p.Reserve(context.Background())
				if err != nil {
					b.Error(err)
					return
				}
				if r := slot.Send(context.Background(), env, yes); r.Outcome != message.Sent {
					b.Error(r)
				}
				slot.Release()
			}
		})
	}
	b.ReportAllocs()
	b.ResetTimer()
	start := time.Now()
	for range b.N {
		jobs <- struct{}{}
	}
	close(jobs)
	senders.Wait()
	b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "msg/s")
	b.StopTimer()
	if err := p.Close(); err != nil {
		b.Error(err)
	}
	_ = ln.Close()
	served.Wait()
}

// sink answers groups of commands as a pipelining server does, and knows
// nothing else.
func sink(nc net.Conn) {
	defer nc.Close()
	br := bufio.NewReaderSize(nc, 16<<10)
	say := func(s string) { _, _ = nc.Write([]byte(s)) }
	say("220 sink\r\n")
	for {
		line, err := br.ReadSlice('\n')
		if err != nil {
			return
		}
		switch string(line[:4]) {
		case "EHLO":
			say("250-sink\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
		case "MAIL", "RCPT": // answered with DATA
		case "DATA":
			say("250 ok\r\n250 ok\r\n354 go\r\n")
			for string(line) != ".\r\n" {
				if line, err = br.ReadSlice('\n'); err != nil {
					return
				}
			}
			say("250 ok\r\n")
		default:
			say("250 ok\r\n")
		}
	}
}
