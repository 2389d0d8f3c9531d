package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/stormpost/stormpost/ingest/httpapi"
	"github.com/stormpost/stormpost/internal/config"
)

// requestGrace is how long requests under way have at the end, at most.
const requestGrace = 10 * time.Second

// listener is an HTTP server on an open port.
type listener struct {
	name   string
	scheme string
	grace  time.Duration // for requests under way at the end
	net.Listener
	server *http.Server
}

// listen opens the ports of the process's roles.
func (p *process) listen(ctx context.Context) (all []*listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range all {
				l.Close()
			}
		}
	}()
	if p.cfg.MetricsListen != "" {
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", p.tel.MetricsHandler())
		mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
		mux.HandleFunc("GET /readyz", p.readyz)
		l, err := p.open(ctx, "metrics", "metrics_listen", p.cfg.MetricsListen, mux)
		if err != nil {
			return all, err
		}
		l.server.ReadTimeout = 10 * time.Second // nobody here wants a body; the API has its own bound
		all = append(all, l)
	}
	if p.cfg.Has("api") {
		l, err := p.open(ctx, "api", "listen", p.cfg.Listen, p.api())
		if err != nil {
			return all, err
		}
		if p.tls != nil {
			l.scheme, l.server.TLSConfig = "https", p.tls
		}
		all = append(all, l)
	}
	return all, nil
}

// tlsConfig reads the files; nil if there are none.
func tlsConfig(files config.TLSFiles) (*tls.Config, error) {
	if files.Cert == "" {
		return nil, nil
	}
	chain, err := os.ReadFile(files.Cert)
	if err != nil {
		return nil, fmt.Errorf("tls.cert: %w", err)
	}
	key, err := os.ReadFile(files.Key)
	if err != nil {
		return nil, fmt.Errorf("tls.key: %w", err)
	}
	cert, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, fmt.Errorf("tls.cert with tls.key: %w", err)
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}, nil
}

func (p *process) open(ctx context.Context, name, key, addr string, h http.Handler) (*listener, error) {
	nl, err := listen(ctx, key, addr)
	if err != nil {
		return nil, err
	}
	return &listener{name: name, scheme: "http", grace: min(requestGrace, p.cfg.Delivery.ShutdownGrace), Listener: nl, server: &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, WriteTimeout: 2 * time.Minute, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
	}}, nil
}

func (p *process) api() http.Handler {
	return httpapi.New(httpapi.Config{
		Service: p.service, Ledger: canceling{p.ledger, p.clusters}, Journal: p.clusters, Keyring: p.ring, Ready: p.ready, Incidents: p.watching.engine, Credentials: p.creds,
		TracerProvider: p.tel.TracerProvider, MeterProvider: p.tel.MeterProvider, Logger: p.log, Version: p.opt.Version, Providers: config.ProviderNames(),
		Events: p.events,
		Limits: httpapi.Limits{Request: p.cfg.Accept.Timeout},
	})
}

// serve answers until ctx ends, and then finishes what is under way.
func (l *listener) serve(ctx context.Context) error {
	done := make(chan error, 1)
	go func() {
		if l.scheme == "https" {
			done <- l.server.ServeTLS(l.Listener, "", "")
			return
		}
		done <- l.server.Serve(l.Listener)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	sctx, cancel := context.WithTimeout(context.Background(), l.grace)
	defer cancel()
	if err := l.server.Shutdown(sctx); err != nil {
		l.server.Close() // those left hold nothing but a request without an answer
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// url is the base URL under which this machine reaches l.
func (l *listener) url() string {
	host, port, _ := net.SplitHostPort(l.Addr().String())
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return l.scheme + "://" + net.JoinHostPort(host, port)
}

func addresses(all []*listener) (a Addresses) {
	for _, l := range all {
		switch l.name {
		case "api":
			a.API = l.url()
		case "metrics":
			a.Metrics = l.url()
		}
	}
	return a
}
