package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// maxAnswer bounds what is read of an answer.
const maxAnswer = 64 << 20

// client calls the API as a user does.
type client struct {
	base string
	key  string
	http http.Client
}

// clientFlags says where the API is: by flag, by variable, or by the dev.json
// of a running `stormpost dev`.
type clientFlags struct {
	api, key, data string
	operator       bool // what the command asks needs the scope operator
}

func (f *clientFlags) add(cmd *cobra.Command) {
	p := cmd.PersistentFlags()
	p.StringVar(&f.api, "api", "", "the API's base URL (or $STORMPOST_API; default: that of a running stormpost dev)")
	p.StringVar(&f.key, "api-key", "", "API key (better as $STORMPOST_API_KEY)")
	p.StringVar(&f.data, "data", "stormpost-data", "the data folder of a running stormpost dev")
}

func (c *command) client(f clientFlags) (*client, error) {
	base, key := f.api, f.key
	if base == "" {
		base = c.get("STORMPOST_API")
	}
	if key == "" {
		key = c.get("STORMPOST_API_KEY")
	}
	if u, err := url.Parse(base); base != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		return nil, usage("--api, or STORMPOST_API: want http://HOST:PORT or https://HOST, not %q", base)
	}
	if base == "" || key == "" {
		var dev struct {
			API    string `json:"api"`
			APIKey string `json:"api_key"`

			OperatorKey string `json:"operator_key"`
		}
		b, err := os.ReadFile(filepath.Join(f.data, "dev.json"))
		if err != nil || json.Unmarshal(b, &dev) != nil {
			return nil, usage("no API: set --api and STORMPOST_API_KEY, or start stormpost dev (there is no %s)", filepath.Join(f.data, "dev.json"))
		}
		if base == "" {
			base = dev.API
		}
		if key == "" {
			key = dev.APIKey
			if f.operator {
				key = dev.OperatorKey
			}
		}
	}
	return &client{base: strings.TrimRight(base, "/"), key: key, http: http.Client{Timeout: time.Minute}}, nil
}

// call sends one request and decodes the answer into out, if it isn't nil.
func (cl *client) call(ctx context.Context, method, path string, header map[string]string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, cl.base+path, body)
	if err != nil {
		return usage("--api: %v", err)
	}
	req.Header.Set("Authorization", "Bearer "+cl.key)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := cl.http.Do(req)
	if err != nil {
		return &exitError{exitUnavailable, err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return &exitError{exitUnavailable, err}
	}
	if resp.StatusCode/100 != 2 {
		err := problem(resp.StatusCode, b)
		if after, bad := strconv.Atoi(resp.Header.Get("Retry-After")); bad == nil && after >= 0 {
			return &laterError{err, resp.StatusCode, time.Duration(after) * time.Second}
		}
		return err
	}
	if out == nil {
		return nil
	}
	return readAnswer(b, out)
}

func readAnswer(b []byte, out any) error {
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("the API's answer can't be read: %w", err)
	}
	return nil
}

// ask makes a request and shows its answer: as it came with --json, else by show.
func ask[A any](ctx context.Context, c *command, cl *client, method, path string, in any, show func(A) error) error {
	var raw json.RawMessage
	if err := cl.call(ctx, method, path, nil, in, &raw); err != nil {
		return err
	}
	if c.json {
		return c.printJSON(raw)
	}
	var a A
	if err := readAnswer(raw, &a); err != nil {
		return err
	}
	return show(a)
}

// list asks for a list, or a page of one, and shows it.
func list[T any](ctx context.Context, c *command, cl *client, path string, q url.Values, show func([]T) error) error {
	type page struct {
		Items []T    `json:"items"`
		Next  string `json:"next"`
	}
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	return ask(ctx, c, cl, http.MethodGet, path, nil, func(p page) error {
		if err := show(p.Items); err != nil {
			return err
		}
		if p.Next != "" {
			fmt.Fprintf(c.Out, "more: --cursor %s\n", p.Next)
		}
		return nil
	})
}

// paging is which page of a list is wanted.
type paging struct {
	cursor string
	limit  int
}

func (p *paging) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.cursor, "cursor", "", "go on where the last page ended")
	cmd.Flags().IntVar(&p.limit, "limit", 50, "at most this many, 1 to 200")
}

func (p *paging) query() (url.Values, error) {
	if p.limit < 1 || p.limit > 200 {
		return nil, usage("--limit: want 1 to 200, not %d", p.limit)
	}
	q := url.Values{"limit": {strconv.Itoa(p.limit)}}
	if p.cursor != "" {
		q.Set("cursor", p.cursor)
	}
	return q, nil
}

// laterError is a refusal that says when to come again.
type laterError struct {
	error
	status int
	after  time.Duration
}

func (e *laterError) Unwrap() error { return e.error }

// callPatiently is call that comes again when it is told to, as long as all of
// that takes no more than patience. A request of which something may have been
// kept, 503, is repeated only if it may be.
func (cl *client) callPatiently(ctx context.Context, patience time.Duration, repeat bool, say io.Writer, method, path string, header map[string]string, in, out any) error {
	for {
		err := cl.call(ctx, method, path, header, in, out)
		var later *laterError
		if !errors.As(err, &later) || later.status != http.StatusTooManyRequests && !repeat {
			return err
		}
		wait := max(later.after, 100*time.Millisecond)
		if patience -= wait; patience < 0 {
			return err
		}
		fmt.Fprintf(say, "%d %s; trying again in %s\n", later.status, http.StatusText(later.status), wait)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}

// problem makes an error of an RFC 9457 answer.
func problem(status int, body []byte) error {
	var p struct {
		Title  string `json:"title"`
		Detail string `json:"detail"`
		Errors []struct {
			Field   string `json:"field"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	text := fmt.Sprintf("%d %s", status, http.StatusText(status))
	if json.Unmarshal(body, &p) == nil {
		if p.Detail != "" {
			text += ": " + p.Detail
		}
		for _, e := range p.Errors {
			text += fmt.Sprintf("\n  %s: %s", e.Field, e.Message)
		}
	}
	code := exitRefused
	if status >= 500 || status == http.StatusTooManyRequests {
		code = exitUnavailable
	}
	return &exitError{code, errors.New(text)}
}
