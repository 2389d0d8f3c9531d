package credential

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// Measure makes metrics of what list has whenever somebody asks for them: by the
// credentials' names, and nothing else of theirs.
func Measure(meters metric.MeterProvider, now func() time.Time, list func() []Status) error {
	m := meters.Meter("github.com/stormpost/stormpost/internal/credential")
	expiry, err1 := m.Float64ObservableGauge("stormpost.credential.expiry", metric.WithUnit("s"),
		metric.WithDescription("Seconds until the generation in use ends; absent where nobody knows."))
	usable, err2 := m.Int64ObservableGauge("stormpost.credential.usable",
		metric.WithDescription("1 while there is something to sign in with that may work, else 0."))
	refreshes, err3 := m.Int64ObservableCounter("stormpost.credential.refreshes", metric.WithUnit("{refresh}"),
		metric.WithDescription("How often the source was asked, by whether it had something to give."))
	rejections, err4 := m.Int64ObservableCounter("stormpost.credential.rejections", metric.WithUnit("{rejection}"),
		metric.WithDescription("How often a service refused it."))
	fallbacks, err5 := m.Int64ObservableCounter("stormpost.credential.fallbacks", metric.WithUnit("{fallback}"),
		metric.WithDescription("How often the newest generation turned out to be of no use, so that an older one went on."))
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return err
	}
	_, err := m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for _, s := range list() {
			name := attribute.String("credential", s.Name)
			by := metric.WithAttributes(name)
			var up int64
			if s.Health != Missing && s.Health != Refused {
				up = 1
			}
			o.ObserveInt64(usable, up, by)
			if !s.Expires.IsZero() {
				o.ObserveFloat64(expiry, s.Expires.Sub(now()).Seconds(), by)
			}
			o.ObserveInt64(refreshes, s.Refreshes-s.Failures, metric.WithAttributes(name, attribute.String("result", "ok")))
			o.ObserveInt64(refreshes, s.Failures, metric.WithAttributes(name, attribute.String("result", "failed")))
			o.ObserveInt64(rejections, s.Rejections, by)
			o.ObserveInt64(fallbacks, s.Fallbacks, by)
		}
		return nil
	}, expiry, usable, refreshes, rejections, fallbacks)
	return err
}
