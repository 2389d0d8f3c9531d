package delivery

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/stormpost/stormpost/internal/message"
)

// The submission, the attempt and the provider's call are one trace.
func TestTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spans := tracetest.NewInMemoryExporter()
		l := newLedger(t)
		var inside trace.SpanContext
		r := start(t, l, func(r *running, c *Config) {
			c.Tracers = sdk.NewTracerProvider(sdk.WithSyncer(spans))
			r.provider.send = func(ctx context.Context, env *message.Envelope, last func() error) message.Result {
				inside = trace.SpanContextFromContext(ctx)
				return r.provider.take(env, last)
			}
		})
		it := l.accept(transactional, time.Hour)
		it.Trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
		r.mustOffer(it)
		synctest.Wait()
		got := spans.GetSpans()
		if len(got) != 2 || got[0].Name != "provider.send" || got[1].Name != "deliver" {
			t.Fatalf("spans: %v", got)
		}
		send, deliver := got[0], got[1]
		if deliver.Parent.SpanID().String() != "b7ad6b7169203331" || send.Parent.SpanID() != deliver.SpanContext.SpanID() ||
			send.SpanContext.TraceID().String() != "0af7651916cd43dd8448eb211c80319c" || inside.SpanID() != send.SpanContext.SpanID() {
			t.Errorf("deliver %+v, send %+v", deliver, send)
		}
		for _, bad := range []string{"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", "00-00000000000000000000000000000000-b7ad6b7169203331-01", "x"} {
			spans.Reset()
			it := l.accept(transactional, time.Hour)
			it.Trace = bad
			r.mustOffer(it)
			synctest.Wait()
			if got := spans.GetSpans(); len(got) != 2 || got[1].Parent.IsValid() {
				t.Errorf("parent %q was taken", bad)
			}
		}
	})
}

// Metrics tell what happened; neither they nor spans nor logs tell to whom.
func TestTelemetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reader, spans := metric.NewManualReader(), tracetest.NewInMemoryExporter()
		var logs bytes.Buffer
		l := newLedger(t)
		r := start(t, l, func(r *running, c *Config) {
			c.Meters = metric.NewMeterProvider(metric.WithReader(reader))
			c.Tracers = sdk.NewTracerProvider(sdk.WithSyncer(spans))
			c.Log = slog.New(slog.NewTextHandler(&logs, nil))
			r.provider.send = func(_ context.Context, env *message.Envelope, last func() error) message.Result {
				switch env.Position.Submission() {
				case 2:
					panic("can't send to a@example.net: It is on its way.")
				case 3:
					return message.Result{Outcome: message.Rejected, Code: "550", Reply: "a@example.net is unknown"}
				}
				return r.provider.take(env, last)
			}
		})
		items := []message.Item{l.accept(transactional, time.Hour), l.accept(transactional, time.Hour), l.accept(transactional, time.Hour)}
		r.mustOffer(items...)
		synctest.Wait()
		r.mustOffer(items[0])
		synctest.Wait()

		var data metricdata.ResourceMetrics
		if err := reader.Collect(t.Context(), &data); err != nil {
			t.Fatal(err)
		}
		counts, names := make(map[string]int64), make(map[string]bool)
		for _, m := range data.ScopeMetrics[0].Metrics {
			names[m.Name] = true
			if sum, ok := m.Data.(metricdata.Sum[int64]); ok && m.Name == "stormpost.delivery.attempts" {
				for _, p := range sum.DataPoints {
					outcome, _ := p.Attributes.Value("outcome")
					counts[outcome.AsString()] += p.Value
				}
			}
		}
		if counts["sent"] != 1 || counts["held"] != 1 || counts["rejected"] != 1 {
			t.Errorf("attempts: %v", counts)
		}
		for _, name := range []string{"claim.duration", "attempts", "handover.duration", "wait.duration", "queued", "open", "provider.usable"} {
			if !names["stormpost.delivery."+name] {
				t.Errorf("no metric %s", name)
			}
		}
		var text strings.Builder
		text.WriteString(logs.String())
		for _, s := range spans.GetSpans() {
			for _, a := range s.Attributes {
				text.WriteString(a.Value.String())
			}
			text.WriteString(s.Status.Description)
		}
		for _, secret := range []string{"a@example.net", "on its way"} {
			if strings.Contains(text.String(), secret) {
				t.Errorf("telemetry tells %q:\n%s", secret, &text)
			}
		}
		if !strings.Contains(logs.String(), "TestTelemetry") { // the panic's stack
			t.Errorf("the log lacks the panic's stack:\n%s", &logs)
		}
	})
}

// What is set aside is counted, by provider and by what it lacked.
func TestSetAsideIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reader := metric.NewManualReader()
		l := newLedger(t)
		hang := func(_ context.Context, env *message.Envelope, last func() error) message.Result {
			_ = last()
			time.Sleep(5 * time.Minute)
			return message.Result{Outcome: message.Unknown}
		}
		r, fcm, _ := twoPlatforms(t, l, func(c *Config) { c.Meters = metric.NewMeterProvider(metric.WithReader(reader)) })
		fcm.send, r.provider.send = hang, hang
		for range 30 {
			r.mustOffer(l.platform("fcm", time.Hour))
		}
		r.mustOffer(l.mailTo("well.example", time.Hour))
		idle(10 * time.Millisecond) // it is seen before the other domain has all senders
		for range 30 {
			r.mustOffer(l.mailTo("sick.example", time.Hour))
		}
		idle(3 * time.Second)
		var data metricdata.ResourceMetrics
		if err := reader.Collect(t.Context(), &data); err != nil {
			t.Fatal(err)
		}
		counts := make(map[string]int64)
		for _, m := range data.ScopeMetrics[0].Metrics {
			if sum, ok := m.Data.(metricdata.Sum[int64]); ok && m.Name == "stormpost.delivery.set_aside" {
				for _, p := range sum.DataPoints {
					provider, _ := p.Attributes.Value("provider")
					cause, _ := p.Attributes.Value("cause")
					counts[provider.AsString()+" "+cause.AsString()] += p.Value
				}
			}
		}
		if len(counts) != 2 || counts["fcm provider"] == 0 || counts["fake domain"] == 0 {
			t.Errorf("set aside: %v", counts)
		}
	})
}
