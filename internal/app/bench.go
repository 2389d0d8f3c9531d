package app

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/internal/bench"
	"github.com/stormpost/stormpost/internal/config"
	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/message"
)

// BenchOptions are the flags of `stormpost bench`.
type BenchOptions struct {
	bench.Options
	HTTP    bool // submit through the API
	Senders int  // attempts under way at a time
	Output  io.Writer
}

// Bench measures a process of both roles on cfg's stores, with topics of its
// own, which it removes, in the ledger of cfg, where it leaves its messages.
func Bench(ctx context.Context, cfg config.Config, opt BenchOptions) (res *bench.Result, err error) {
	dir, err := os.MkdirTemp("", "stormpost-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	cfg.Roles, cfg.Listen, cfg.MetricsListen, cfg.DataDir = []string{"api", "worker", "recovery"}, "127.0.0.1:0", "", dir
	cfg.Clusters, cfg.Kafka.Standby = nil, ""
	cfg.Kafka.Prefix = "stormpost-bench-" + strings.ToLower(rand.Text()[:8])
	cfg.Accept.Backlog, cfg.Accept.TenantBacklog = 0, 0 // it wants to know what goes
	cfg.Log = config.Log{Level: "warn", Format: "text"}
	cfg.Delivery.Senders = map[string]int{"transactional.email": opt.Senders}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if _, err := dedupe.Migrate(ctx, cfg.DSN.Reveal()); err != nil {
		return nil, err
	}
	key, err := benchKey(ctx, cfg.DSN.Reveal())
	if err != nil {
		return nil, err
	}
	loopback := &bench.Loopback{}
	ready := make(chan *process, 1)
	sctx, stop := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() {
		served <- serve(sctx, cfg, Options{Version: "bench", Output: opt.Output}, loopback, ready)
	}()
	var p *process
	defer func() {
		stop()
		err = errors.Join(err, <-served)
		if err == nil {
			err = loopback.Doubled() // what came after the last of them
		}
		if p != nil {
			p.removeTopics()
		}
	}()
	select {
	case err := <-served:
		served <- nil
		return nil, err
	case p = <-ready:
		pipe := bench.Pipe{Provider: loopback, Stores: storeAddresses(cfg), Submit: p.submitDirectly(key)}
		if opt.HTTP {
			pipe.Submit = submitByHTTP(p.addr.API, key, opt.Submitters)
		}
		if err := p.benchReady(ctx); err != nil {
			return nil, err
		}
		return bench.Run(ctx, pipe, opt.Options)
	}
}

func benchKey(ctx context.Context, dsn string) (string, error) {
	l, err := dedupe.Open(dedupe.Config{DSN: dsn})
	if err != nil {
		return "", err
	}
	defer l.Close()
	key, _, err := CreateKey(ctx, l, "bench", []string{"*"}, []keyring.Scope{keyring.Send}, false)
	return key, err
}

// benchReady waits until the consumer has its partitions and the key is known.
func (p *process) benchReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := p.ring.Refresh(ctx); err != nil {
		return err
	}
	return p.clusters.all[0].consumer.Joined(ctx)
}

func (p *process) removeTopics() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := p.clusters.all[0].broker.RemoveTopics(ctx); err != nil {
		p.log.Warn("the bench's topics are left", "error", err)
	}
}

func (p *process) submitDirectly(key string) bench.Submit {
	return func(ctx context.Context, id string, c *message.Content) error {
		who, err := p.ring.Verify(key)
		if err != nil {
			return err
		}
		_, err = p.service.Submit(ctx, ingest.Request{Principal: who, Key: id, Content: c})
		return err
	}
}

func submitByHTTP(base, key string, parallel int) bench.Submit {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: parallel, MaxConnsPerHost: parallel}}
	return func(ctx context.Context, id string, c *message.Content) error {
		b, err := json.Marshal(c.Email)
		if err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/emails", bytes.NewReader(b))
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+key)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Idempotency-Key", id)
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusAccepted {
			err = fmt.Errorf("%s: %s", resp.Status, body)
		}
		return err
	}
}

// storeAddresses is where the stores listen, as host:port. A DSN that isn't a
// URL doesn't tell: then PostgreSQL's CPU is not told apart.
func storeAddresses(cfg config.Config) []string {
	var all []string
	if u, err := url.Parse(cfg.DSN.Reveal()); err == nil && u.Hostname() != "" {
		all = append(all, net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "5432")))
	}
	return append(all, cfg.Brokers...)
}
