package delivery

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	mnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/stormpost/stormpost/internal/message"
)

const scope = "github.com/stormpost/stormpost/delivery"

// observer is the worker's tracer and the owner of its instruments. Neither
// ever gets a recipient or content.
type observer struct {
	tracer trace.Tracer // nil when nobody listens
	gauges metric.Registration
}

// laneMeter has a lane's instruments, with their attributes made once.
type laneMeter struct {
	claims    metric.Float64Histogram
	attempts  metric.Int64Counter
	handovers metric.Float64Histogram
	waits     metric.Float64Histogram
	aside     metric.Int64Counter

	verdicts  [message.TooEarly + 1][]metric.RecordOption
	outcomes  map[string]*[heldOutcome + 1][]metric.AddOption
	providers map[string][]metric.RecordOption
	asides    map[string]*[2][]metric.AddOption // by provider; for the domain's sake the second
	lane      []metric.RecordOption
}

// heldOutcome counts beside the outcomes what was set aside.
const heldOutcome = message.Returned + 1

var verdictNames = [...]string{
	message.Claimed: "claimed", message.Taken: "taken", message.NotDue: "not_due",
	message.Expired: "expired", message.Stranger: "stranger", message.TooEarly: "too_early",
}

func newObserver(w *Worker) (*observer, error) {
	o := &observer{}
	if w.cfg.Tracers != nil {
		if _, silent := w.cfg.Tracers.(noop.TracerProvider); !silent {
			o.tracer = w.cfg.Tracers.Tracer(scope)
		}
	}
	meters := w.cfg.Meters
	if meters == nil {
		meters = mnoop.NewMeterProvider()
	}
	m := meters.Meter(scope)
	seconds := metric.WithExplicitBucketBoundaries(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
	claims, err1 := m.Float64Histogram("stormpost.delivery.claim.duration", metric.WithUnit("s"), seconds, metric.WithDescription("From asking for an attempt to the ledger's answer."))
	attempts, err2 := m.Int64Counter("stormpost.delivery.attempts", metric.WithUnit("{attempt}"), metric.WithDescription("Claimed attempts by how they ended."))
	handovers, err3 := m.Float64Histogram("stormpost.delivery.handover.duration", metric.WithUnit("s"), seconds, metric.WithDescription("From the last check to the provider's answer."))
	waits, err4 := m.Float64Histogram("stormpost.delivery.wait.duration", metric.WithUnit("s"), seconds, metric.WithDescription("From a worker being offered a message to the last check before its hand-over."))
	aside, err5 := m.Int64Counter("stormpost.delivery.set_aside", metric.WithUnit("{message}"), metric.WithDescription("Messages set aside in the ledger, without an attempt, because their provider had no sender to spare, or none for their recipient's domain."))
	if err := errors.Join(err1, err2, err3, err4, err5, o.observe(w, m)); err != nil {
		return nil, err
	}
	for _, l := range w.all {
		lane := attribute.String("lane", l.name)
		l.meter = &laneMeter{
			claims: claims, attempts: attempts, handovers: handovers, waits: waits, aside: aside, asides: make(map[string]*[2][]metric.AddOption),
			outcomes: make(map[string]*[heldOutcome + 1][]metric.AddOption), providers: make(map[string][]metric.RecordOption),
			lane: recordOptions(lane),
		}
		for v := message.Claimed; v <= message.TooEarly; v++ {
			l.meter.verdicts[v] = recordOptions(lane, attribute.String("verdict", verdictNames[v]))
		}
		for _, name := range append(l.gates.names(), "", sandbox{}.Name()) {
			provider := attribute.String("provider", name)
			l.meter.providers[name] = recordOptions(lane, provider)
			l.meter.asides[name] = new([2][]metric.AddOption)
			for i, cause := range []string{"provider", "domain"} {
				l.meter.asides[name][i] = []metric.AddOption{metric.WithAttributeSet(attribute.NewSet(lane, provider, attribute.String("cause", cause)))}
			}
			var byOutcome [heldOutcome + 1][]metric.AddOption
			for out := message.Sent; out <= heldOutcome; out++ {
				text := out.String()
				if out == heldOutcome {
					text = "held"
				}
				byOutcome[out] = []metric.AddOption{metric.WithAttributeSet(attribute.NewSet(lane, provider, attribute.String("outcome", text)))}
			}
			l.meter.outcomes[name] = &byOutcome
		}
	}
	return o, nil
}

func recordOptions(kv ...attribute.KeyValue) []metric.RecordOption {
	return []metric.RecordOption{metric.WithAttributeSet(attribute.NewSet(kv...))}
}

// observe registers what is looked at only when somebody asks.
func (o *observer) observe(w *Worker, m metric.Meter) error {
	queued, err1 := m.Int64ObservableGauge("stormpost.delivery.queued", metric.WithUnit("{message}"), metric.WithDescription("Items in a lane's queue, by where they came from."))
	open, err2 := m.Int64ObservableGauge("stormpost.delivery.open", metric.WithUnit("{attempt}"), metric.WithDescription("Attempts whose end is not durable yet."))
	usable, err3 := m.Int64ObservableGauge("stormpost.delivery.provider.usable", metric.WithDescription("1 while the provider can be used: slots can be had, and its breaker is closed; else 0."))
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	var err error
	o.gauges, err = m.RegisterCallback(func(_ context.Context, ob metric.Observer) error {
		for _, l := range w.all {
			lane := attribute.String("lane", l.name)
			_, n := l.hand.counts()
			ob.ObserveInt64(open, int64(n), metric.WithAttributes(lane))
			ob.ObserveInt64(queued, int64(len(l.kafka)), metric.WithAttributes(lane, attribute.String("source", "kafka")))
			ob.ObserveInt64(queued, int64(len(l.feed)), metric.WithAttributes(lane, attribute.String("source", "ledger")))
		}
		for _, g := range w.gates {
			var up int64
			if g.state.Load() == gateOpen {
				up = 1
			}
			ob.ObserveInt64(usable, up, metric.WithAttributes(attribute.String("provider", g.provider.Name())))
		}
		return nil
	}, queued, open, usable)
	return err
}

func (o *observer) close() error { return o.gauges.Unregister() }

func (m *laneMeter) claimed(v message.ClaimVerdict, took time.Duration) {
	if v < message.Claimed || v > message.TooEarly {
		return
	}
	m.claims.Record(context.Background(), took.Seconds(), m.verdicts[v]...)
}

func (m *laneMeter) handedOver(provider string, waited, took time.Duration) {
	m.waits.Record(context.Background(), waited.Seconds(), m.lane...)
	m.handovers.Record(context.Background(), took.Seconds(), m.providers[provider]...)
}

func (m *laneMeter) setAside(provider string, domain bool) {
	cause := 0
	if domain {
		cause = 1
	}
	m.aside.Add(context.Background(), 1, m.asides[provider][cause]...)
}

func (m *laneMeter) ended(provider string, r message.Result) {
	out := r.Outcome
	if r.Poison {
		out = heldOutcome
	}
	m.attempts.Add(context.Background(), 1, m.outcomes[provider][out]...)
}

// traceparent carries the one header of the W3C trace context that an item has.
type traceparent string

func (t traceparent) Get(key string) string {
	if key == "traceparent" {
		return string(t)
	}
	return ""
}
func (traceparent) Set(string, string) {}
func (traceparent) Keys() []string     { return []string{"traceparent"} }

// deliver begins the span of an attempt, as a child of its submission. A parent
// that isn't valid W3C trace context is ignored, and a new trace begins.
func (o *observer) deliver(a *attempt, parent string) trace.Span {
	if o.tracer == nil {
		return noop.Span{}
	}
	ctx := propagation.TraceContext{}.Extract(context.Background(), traceparent(parent))
	_, span := o.tracer.Start(ctx, "deliver", trace.WithSpanKind(trace.SpanKindConsumer), trace.WithTimestamp(a.begun.Wall))
	if span.IsRecording() {
		span.SetAttributes(
			attribute.String("stormpost.lane", a.lane.name),
			attribute.String("stormpost.message.id", a.env.ID.String()),
			attribute.Int("stormpost.attempt", a.env.Attempt),
		)
	}
	return span
}

// send begins the span of the provider's call, under that of its attempt.
func (o *observer) send(ctx context.Context, attempt trace.Span, provider string) (context.Context, trace.Span) {
	if o.tracer == nil {
		return ctx, noop.Span{}
	}
	return o.tracer.Start(trace.ContextWithSpan(ctx, attempt), "provider.send", trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attribute.String("stormpost.provider", provider)))
}

// ended ends the span of an attempt.
func (o *observer) ended(span trace.Span, provider string, r message.Result) {
	if o.tracer == nil {
		return
	}
	if span.IsRecording() {
		outcome := r.Outcome.String()
		if r.Poison {
			outcome = "held"
		}
		span.SetAttributes(attribute.String("stormpost.provider", provider), attribute.String("stormpost.outcome", outcome), attribute.String("stormpost.code", r.Code))
		if r.Poison || r.Outcome == message.Unknown || r.Outcome == message.Rejected {
			span.SetStatus(codes.Error, outcome)
		}
	}
	span.End()
}
