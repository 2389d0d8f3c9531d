// Package otlptest collects in tests what processes export by OTLP over HTTP.
//
// The protocol is that of https://opentelemetry.io/docs/specs/otlp/#otlphttp,
// in its binary form, with or without gzip.
package otlptest

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"

	collectormetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	collectortrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	"google.golang.org/protobuf/proto"
)

const (
	maxBody  = 16 << 20 // bytes, unpacked
	maxSpans = 100_000  // kept; a batch that goes beyond is refused
)

// Sink stands in for a collector. It is safe for concurrent use, and takes
// exports from any number of processes.
type Sink struct {
	server *httptest.Server

	mu      sync.Mutex
	spans   []Span
	metrics map[string]bool // names
	changed chan struct{}   // closed, and replaced, when something has come
}

// Start serves a sink until the test ends.
func Start(tb testing.TB) *Sink {
	tb.Helper()
	s := &Sink{metrics: make(map[string]bool), changed: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/traces", s.takeTraces)
	mux.HandleFunc("POST /v1/metrics", s.takeMetrics)
	s.server = httptest.NewServer(mux)
	tb.Cleanup(s.server.Close)
	return s
}

// URL is the sink's address, for OTEL_EXPORTER_OTLP_ENDPOINT.
func (s *Sink) URL() string { return s.server.URL }

// Spans are those that have come so far, in the order of their arrival.
func (s *Sink) Spans() []Span {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.spans)
}

// Wait returns nil once done says yes to all spans that have come so far. It
// asks at once, and whenever more have come. If ctx ends before, the error holds
// the spans that were there. done must not change or keep the slice.
func (s *Sink) Wait(ctx context.Context, done func(spans []Span) bool) error {
	if err := s.wait(ctx, func() bool { return done(s.spans) }); err != nil {
		return fmt.Errorf("otlptest: waiting for spans: %w; have %+v", err, s.Spans())
	}
	return nil
}

// WaitMetric returns nil once a metric of that name has come from any process.
func (s *Sink) WaitMetric(ctx context.Context, name string) error {
	if err := s.wait(ctx, func() bool { return s.metrics[name] }); err != nil {
		return fmt.Errorf("otlptest: waiting for metric %s: %w", name, err)
	}
	return nil
}

// wait calls done with the lock held.
func (s *Sink) wait(ctx context.Context, done func() bool) error {
	for {
		s.mu.Lock()
		ok, changed := done(), s.changed
		s.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// wake lets those who wait look again. The lock is held.
func (s *Sink) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Sink) takeTraces(w http.ResponseWriter, r *http.Request) {
	var request collectortrace.ExportTraceServiceRequest
	if !read(w, r, &request) {
		return
	}
	spans := spansOf(request.GetResourceSpans())
	s.mu.Lock()
	full := len(s.spans)+len(spans) > maxSpans
	if !full {
		s.spans = append(s.spans, spans...)
		s.wake()
	}
	s.mu.Unlock()
	if full {
		// Not one of the statuses that exporters try again on.
		http.Error(w, "the sink is full", http.StatusInsufficientStorage)
		return
	}
	answer(w, &collectortrace.ExportTraceServiceResponse{})
}

func (s *Sink) takeMetrics(w http.ResponseWriter, r *http.Request) {
	var request collectormetrics.ExportMetricsServiceRequest
	if !read(w, r, &request) {
		return
	}
	s.mu.Lock()
	for _, name := range namesOf(request.GetResourceMetrics()) {
		s.metrics[name] = true
	}
	s.wake()
	s.mu.Unlock()
	answer(w, &collectormetrics.ExportMetricsServiceResponse{})
}

func namesOf(all []*metrics.ResourceMetrics) (names []string) {
	for _, r := range all {
		for _, scope := range r.GetScopeMetrics() {
			for _, m := range scope.GetMetrics() {
				names = append(names, m.GetName())
			}
		}
	}
	return names
}

// read decodes the body, or answers what is wrong with it.
func read(w http.ResponseWriter, r *http.Request, into proto.Message) bool {
	if err := decode(r, into); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}

func decode(r *http.Request, into proto.Message) error {
	if t := r.Header.Get("Content-Type"); t != "application/x-protobuf" {
		return fmt.Errorf("want application/x-protobuf, not %q", t)
	}
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		unpacked, err := gzip.NewReader(body)
		if err != nil {
			return fmt.Errorf("gzip: %w", err)
		}
		body = unpacked
	}
	b, err := io.ReadAll(io.LimitReader(body, maxBody+1))
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if len(b) > maxBody {
		return errors.New("the body is too long")
	}
	return proto.Unmarshal(b, into)
}

func answer(w http.ResponseWriter, m proto.Message) {
	b, err := proto.Marshal(m)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
	_, _ = w.Write(b) // an exporter that is gone will export again
}
