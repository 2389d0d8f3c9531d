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
	"testing"
	"time"

	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/ingest/events"
	"github.com/stormpost/stormpost/ingest/httpapi"
	"github.com/stormpost/stormpost/internal/message"
)

func TestSlowBody(t *testing.T) {
	f := newFixture(t, func(c *httpapi.Config) { c.Limits.BodyTime = 50 * time.Millisecond })
	server := httptest.NewServer(f.handler)
	defer server.Close()
	for path, key := range map[string]string{"/v1/emails": "one", "/v1/holds": "operator"} {
		slowBody(t, server, path, key)
	}
}

func slowBody(t *testing.T, server *httptest.Server, path, key string) {
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second)) // for when the server has none
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{", path, key)
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	wantProblem(t, answer{response, body}, http.StatusRequestTimeout, "body")
}

// A body that nobody reads, and that doesn't come, doesn't keep its connection:
// without a key anybody could have all of them.
func TestUnreadBody(t *testing.T) {
	f := newFixture(t, func(c *httpapi.Config) { c.Limits.BodyTime = 50 * time.Millisecond })
	server := httptest.NewServer(f.handler)
	defer server.Close()
	for request, want := range map[string]int{
		"POST /v1/emails HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n":                                                                                                          401,
		"POST /v1/emails HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n":                                                                                                    401,
		"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n":                                                                                                               200,
		"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n":                                                                                                            404,
		"POST /v1/emails HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer one\r\nContent-Length: 1000\r\n\r\n":                                                                             415,
		"POST /v1/emails HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer one\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: 1000\r\n\r\nthis is not gzip": 400,
	} {
		t.Run(request[:strings.Index(request, "\r")], func(t *testing.T) {
			conn, err := net.Dial("tcp", server.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second)) // for when the server has none
			if _, err := io.WriteString(conn, request); err != nil {
				t.Fatal(err)
			}
			response, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			response.Body.Close()
			if response.StatusCode != want {
				t.Errorf("%d, want %d", response.StatusCode, want)
			}
		})
	}
}

// A connection goes on being used after a request whose body had a deadline.
func TestKeepAlive(t *testing.T) {
	f := newFixture(t, func(c *httpapi.Config) { c.Limits.BodyTime = time.Second })
	server := httptest.NewServer(f.handler)
	defer server.Close()
	for range 3 {
		request, err := http.NewRequest("POST", server.URL+"/v1/emails", strings.NewReader(goodEmail))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer one")
		request.Header.Set("Content-Type", "application/json")
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, response.Body)
		response.Body.Close()
		if response.StatusCode != 202 {
			t.Fatalf("status %d", response.StatusCode)
		}
	}
}

// stuck is a ledger that tells that it was asked, and waits.
type stuck struct {
	asked chan context.Context
	ended chan error
}

func (s *stuck) Accept(ctx context.Context, _ *message.Submission) (message.Receipt, error) {
	s.asked <- ctx
	<-ctx.Done()
	s.ended <- ctx.Err()
	return message.Receipt{}, ctx.Err()
}

func (*stuck) Publish([]message.Item) {}

// An accept that takes too long is unknown, which is a 503 and no promise; and
// a client that hangs up meanwhile doesn't end it.
func TestAcceptDeadline(t *testing.T) {
	s := &stuck{make(chan context.Context, 1), make(chan error, 1)}
	f := newFixture(t, func(c *httpapi.Config) {
		c.Service = ingest.New(s, s, ingest.Config{})
		c.Limits.Request = 20 * time.Millisecond
	})
	a := f.do("POST", "/v1/emails", "one", goodEmail)
	wantProblem(t, a, 503)
	if a.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	<-s.asked
	<-s.ended

	ctx, hangUp := context.WithCancel(context.Background())
	r := httptest.NewRequest("POST", "/v1/emails", strings.NewReader(goodEmail)).WithContext(ctx)
	r.Header.Set("Authorization", "Bearer one")
	r.Header.Set("Content-Type", "application/json")
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.handler.ServeHTTP(httptest.NewRecorder(), r)
	}()
	<-s.asked
	hangUp()
	if err := <-s.ended; err != context.DeadlineExceeded {
		t.Errorf("the accept ended with %v, want its own deadline", err)
	}
	<-done
}

// Large bodies that would take more memory than allowed at once are put off.
func TestBodyMemory(t *testing.T) {
	f := newFixture(t, func(c *httpapi.Config) {
		c.Limits.Body, c.Limits.BodyMemory = 1<<20, 1 // raised to one body
		c.Events = map[string]ingest.EventSource{"postmark": events.Postmark{User: "postmark", Password: "a long password"}}
	})
	large := with(goodEmail, object{"text": strings.Repeat("a", 100<<10)})

	// The first one has taken its share once the server reads beyond 64 KiB.
	pause := &pausing{Reader: strings.NewReader(large), at: 90 << 10, reached: make(chan struct{}), goOn: make(chan struct{})}
	done := make(chan int)
	go func() {
		r := httptest.NewRequest("POST", "/v1/emails", pause)
		r.Header.Set("Authorization", "Bearer one")
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		f.handler.ServeHTTP(w, r)
		done <- w.Code
	}()
	<-pause.reached
	wantProblem(t, f.do("POST", "/v1/emails", "one", large), 503)
	wantProblem(t, f.do("POST", "/events/postmark", "", large), 503) // whoever it is from
	decodeInto[accepted](t, f.do("POST", "/v1/emails", "one", goodEmail), 202)
	close(pause.goOn)
	if code := <-done; code != 202 {
		t.Errorf("the first one: %d", code)
	}
	decodeInto[accepted](t, f.do("POST", "/v1/emails", "one", large), 202)
}

// A large body counts by its length, where that is known.
func TestBodyMemoryByLength(t *testing.T) {
	f := newFixture(t, func(c *httpapi.Config) { c.Limits.Body, c.Limits.BodyMemory = 1<<20, 1 }) // raised to one body
	large := with(goodEmail, object{"text": strings.Repeat("a", 100<<10)})
	pause := &pausing{Reader: strings.NewReader(large), at: 90 << 10, reached: make(chan struct{}), goOn: make(chan struct{})}
	done := make(chan int)
	go func() {
		r := httptest.NewRequest("POST", "/v1/emails", pause)
		r.ContentLength = int64(len(large))
		r.Header.Set("Authorization", "Bearer one")
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		f.handler.ServeHTTP(w, r)
		done <- w.Code
	}()
	<-pause.reached
	decodeInto[accepted](t, f.do("POST", "/v1/emails", "one", large), 202)
	r := httptest.NewRequest("POST", "/v1/emails", io.MultiReader(strings.NewReader(large)))
	r.Header.Set("Authorization", "Bearer one")
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	if f.handler.ServeHTTP(w, r); w.Code != 503 {
		t.Errorf("one that may be as long as it likes: %d", w.Code)
	}
	close(pause.goOn)
	if code := <-done; code != 202 {
		t.Errorf("the first one: %d", code)
	}
}

// pausing waits once it was read up to a place.
type pausing struct {
	io.Reader
	at, read      int
	reached, goOn chan struct{}
}

func (p *pausing) Read(b []byte) (int, error) {
	if p.read >= p.at {
		select {
		case <-p.reached:
		default:
			close(p.reached)
		}
		<-p.goOn
	}
	n, err := p.Reader.Read(b[:min(len(b), 4096)])
	p.read += n
	return n, err
}
