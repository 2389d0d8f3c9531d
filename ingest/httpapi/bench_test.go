package httpapi_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/ingest/httpapi"
	"github.com/stormpost/stormpost/internal/message"
)

// instant is a ledger that costs nothing.
type instant struct{ n atomic.Int64 }

func (i *instant) Accept(context.Context, *message.Submission) (message.Receipt, error) {
	n := i.n.Add(1)
	return message.Receipt{Submission: n, Sequence: n}, nil
}

func (*instant) Publish([]message.Item) {}

// BenchmarkEmails is POST /v1/emails with 1 KiB of text, over kept-alive
// loopback connections, client included.
func BenchmarkEmails(b *testing.B) {
	i := &instant{}
	f := newFixture(b, func(c *httpapi.Config) { c.Service = ingest.New(i, i, ingest.Config{}) })
	server := httptest.NewServer(f.handler)
	defer server.Close()
	body := with(goodEmail, object{"text": strings.Repeat("0123456789abcde\n", 64)})
	request := fmt.Sprintf("POST /v1/emails HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer one\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	b.SetParallelism(16)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			b.Error(err)
			return
		}
		defer conn.Close()
		in := bufio.NewReader(conn)
		for pb.Next() {
			if _, err := io.WriteString(conn, request); err != nil {
				b.Error(err)
				return
			}
			response, err := http.ReadResponse(in, nil)
			if err != nil || response.StatusCode != http.StatusAccepted {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, response.Body)
			_ = response.Body.Close()
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
}

// BenchmarkHandler is the same without a network.
func BenchmarkHandler(b *testing.B) {
	i := &instant{}
	f := newFixture(b, func(c *httpapi.Config) { c.Service = ingest.New(i, i, ingest.Config{}) })
	body := with(goodEmail, object{"text": strings.Repeat("0123456789abcde\n", 64)})
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequest("POST", "/v1/emails", strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer one")
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		f.handler.ServeHTTP(w, r)
		if w.Code != http.StatusAccepted {
			b.Fatal(w.Code)
		}
	}
}
