//go:build linux

package promise

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/stormpost/stormpost/internal/telemetry/otlptest"
)

// One trace id joins the request, the Kafka record, the attempt and the call of
// the provider, with API and worker in processes of their own.
func TestOneTraceFromRequestToProvider(t *testing.T) {
	s := newStage(t)
	sink := otlptest.Start(t)
	export := []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + sink.URL(), "OTEL_BSP_SCHEDULE_DELAY=100", "OTEL_METRICS_EXPORTER=none"}
	api := s.start("api", append(export, "OTEL_SERVICE_NAME=the-api")...).api
	s.start("worker", append(export, "OTEL_SERVICE_NAME=the-worker")...)
	c := newClient(t, s.key, func() string { return api })

	for i, o := range []order{{Name: "traced-email"}, {Name: "traced-push", Push: true}} {
		trace := []string{"0af7651916cd43dd8448eb211c80319c", "4bf92f3577b34da6a3ce929d0e0e4736"}[i]
		a, err := c.post(t.Context(), api, o, o.Name, "traceparent", "00-"+trace+"-b7ad6b7169203331-01")
		if err != nil || a.status != 202 {
			t.Fatalf("%d %v", a.status, err)
		}
		if err := c.remember(o.Name); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		err = sink.Wait(ctx, func(spans []otlptest.Span) bool {
			ids := make(map[string]otlptest.Span)
			var request, attempt, call bool
			for _, sp := range spans {
				if sp.TraceID == trace {
					ids[sp.SpanID] = sp
				}
			}
			for _, sp := range ids {
				switch {
				case sp.Service == "the-api" && strings.HasPrefix(sp.Name, "POST"):
					request = sp.ParentID == "b7ad6b7169203331"
				case sp.Service == "the-worker" && sp.Name == "deliver":
					attempt = ids[sp.ParentID].Service == "the-api"
				case sp.Service == "the-worker" && sp.Name == "provider.send":
					call = ids[sp.ParentID].Name == "deliver"
				}
			}
			return request && attempt && call
		})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		topic := s.prefix + ".transactional." + map[bool]string{false: "email", true: "push"}[o.Push]
		if got := s.traceOfRecord(topic); !strings.Contains(got, trace) {
			t.Errorf("the Kafka record's traceparent is %q, not of trace %s", got, trace)
		}
		var view struct{ Traceparent string }
		s.getAs(s.key, api+"/v1/messages/"+a.Messages[0].ID, &view)
		if !strings.Contains(view.Traceparent, trace) {
			t.Errorf("the ledger's traceparent is %q", view.Traceparent)
		}
	}
	s.settle(c, c.urls, 30*time.Second)
}

// traceOfRecord is the traceparent of the first record in a topic.
func (s *stage) traceOfRecord(topic string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	found := make(chan string, 4)
	for p := range 4 {
		r := kafka.NewReader(kafka.ReaderConfig{Brokers: s.brokers, Topic: topic, Partition: p, MaxWait: 250 * time.Millisecond})
		defer r.Close()
		go func() {
			m, err := r.ReadMessage(ctx)
			if err != nil {
				return
			}
			for _, h := range m.Headers {
				if h.Key == "traceparent" {
					found <- string(h.Value)
					return
				}
			}
			found <- ""
		}()
	}
	select {
	case v := <-found:
		return v
	case <-ctx.Done():
		return ""
	}
}
