//go:build linux

package promise

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// client submits messages as an application does that means it: each under a
// key of its own, again and again until there is an answer. What is answered
// 200 or 202 goes into its own file, which is synced before it counts.
type client struct {
	t    *testing.T
	key  string
	urls func() string // an API's base URL; asked anew for each try
	http *http.Client

	mu    sync.Mutex
	file  *os.File
	count atomic.Int64
}

func newClient(t *testing.T, key string, urls func() string) *client {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "accepted"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	tr := &http.Transport{MaxIdleConnsPerHost: 256, MaxConnsPerHost: 256}
	t.Cleanup(tr.CloseIdleConnections)
	return &client{t: t, key: key, urls: urls, file: f, http: &http.Client{Timeout: 15 * time.Second, Transport: tr}}
}

// order is one message to submit. Name is what the judge knows it by.
type order struct {
	Name      string
	Push      bool
	Class     string
	Stream    string
	ExpiresAt time.Time
	Size      int // of an email's text, in bytes; 0: a word
}

func (o order) request() (path string, body map[string]any) {
	body = map[string]any{}
	if o.Class != "" {
		body["class"] = o.Class
	}
	if o.Stream != "" {
		body["stream"] = o.Stream
	}
	if !o.ExpiresAt.IsZero() {
		body["expires_at"] = o.ExpiresAt
	}
	if o.Push {
		body["platform"], body["to"] = "fcm", "device-token-"+o.Name
		body["notification"] = map[string]string{"title": o.Name, "body": "Hello"}
		return "/v1/pushes", body
	}
	text := "Hello"
	if o.Size > 0 {
		text = strings.Repeat("A line of many that are like it.\n", 1+o.Size/33)[:o.Size]
	}
	body["from"], body["to"], body["subject"], body["text"] = "app@example.com", []string{o.Name + "@example.net"}, o.Name, text
	return "/v1/emails", body
}

type answer struct {
	status   int
	ID       string `json:"id"`
	Messages []struct {
		ID       string `json:"id"`
		State    string `json:"state"`
		Sequence int64  `json:"sequence"`
	} `json:"messages"`
}

// post makes one try.
func (c *client) post(ctx context.Context, base string, o order, key string, header ...string) (answer, error) {
	path, body := o.request()
	b, err := json.Marshal(body)
	if err != nil {
		return answer{}, err
	}
	return c.do(ctx, http.MethodPost, base+path, b, append(header, "Idempotency-Key", key)...)
}

func (c *client) do(ctx context.Context, method, url string, body []byte, header ...string) (answer, error) {
	var a answer
	resp, err := c.raw(ctx, method, url, body, header...)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	a.status = resp.StatusCode
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return a, err
	}
	if resp.StatusCode/100 == 2 {
		return a, json.Unmarshal(b, &a)
	}
	return a, nil
}

func (c *client) raw(ctx context.Context, method, url string, body []byte, header ...string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+c.key)
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return c.http.Do(req)
}

// submit tries until the message is accepted, and remembers that.
func (c *client) submit(ctx context.Context, o order) (answer, error) {
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		a, err := c.post(ctx, c.urls(), o, o.Name)
		switch {
		case err == nil && (a.status == http.StatusAccepted || a.status == http.StatusOK):
			return a, c.remember(o.Name)
		case err == nil && a.status/100 == 4:
			return a, fmt.Errorf("%s: refused with %d", o.Name, a.status)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return a, ctx.Err()
		}
	}
}

func (c *client) remember(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := fmt.Fprintln(c.file, name); err != nil {
		return err
	}
	c.count.Add(1)
	return c.file.Sync()
}

// accepted is what the client's file says.
func (c *client) accepted() map[string]bool {
	c.t.Helper()
	f, err := os.Open(c.file.Name())
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	names := make(map[string]bool)
	for scan := bufio.NewScanner(f); scan.Scan(); {
		names[scan.Text()] = true
	}
	return names
}

// flow submits orders at a steady rate until its stop is called, which waits
// for those under way.
func (c *client) flow(rate int, next func(i int) order) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				wg.Go(func() {
					// What was begun is seen through.
					limit, done := context.WithTimeout(context.Background(), 3*time.Minute)
					defer done()
					if _, err := c.submit(limit, next(i)); err != nil {
						c.t.Error(err)
					}
				})
			}
		}
	})
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			wg.Wait()
		})
	}
	c.t.Cleanup(stop)
	return stop
}

// mixed alternates emails and pushes over some streams.
func mixed(prefix string) func(i int) order {
	return func(i int) order {
		return order{Name: fmt.Sprintf("%s-%06d", prefix, i), Push: i%2 == 1, Stream: fmt.Sprint("stream-", i%5)}
	}
}

// submitBatches submits n campaign messages by POST /v1/batches.
func submitBatches(t *testing.T, s *stage, c *client, api string, n int) {
	t.Helper()
	var wg sync.WaitGroup
	limit := make(chan struct{}, 4)
	for from := 0; from < n; from += 1000 {
		limit <- struct{}{}
		wg.Go(func() {
			defer func() { <-limit }()
			var b bytes.Buffer
			var names []string
			for i := from; i < min(n, from+1000); i++ {
				o := order{Name: fmt.Sprintf("campaign-%06d", i), Push: i%2 == 1, Class: "campaign"}
				_, line := o.request()
				line["channel"], line["idempotency_key"] = "email", o.Name
				if o.Push {
					line["channel"] = "push"
				}
				if err := json.NewEncoder(&b).Encode(line); err != nil {
					t.Error(err)
				}
				names = append(names, o.Name)
			}
			resp, err := c.raw(t.Context(), http.MethodPost, api+"/v1/batches", b.Bytes(), "Content-Type", "application/x-ndjson")
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			var accepted []string
			scan := bufio.NewScanner(resp.Body)
			scan.Buffer(nil, 1<<20)
			for scan.Scan() {
				var a struct{ Line, Status int }
				if err := json.Unmarshal(scan.Bytes(), &a); err != nil || a.Status != http.StatusAccepted {
					t.Errorf("batch: %s: %s", resp.Status, scan.Text())
					break
				}
				accepted = append(accepted, names[a.Line-1])
			}
			if err := c.rememberAll(accepted); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// rememberAll is remember for many, with one sync.
func (c *client) rememberAll(names []string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range names {
		if _, err := fmt.Fprintln(c.file, name); err != nil {
			return err
		}
	}
	c.count.Add(int64(len(names)))
	return c.file.Sync()
}
