package telemetry

import (
	"context"

	"go.opentelemetry.io/otel/propagation"
)

const traceparent = "traceparent"

// traceParent is the span in ctx as a traceparent of W3C Trace Context § 3.2,
// such as 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01, or empty if
// there is none.
func traceParent(ctx context.Context) string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier[traceparent]
}

// contextWith is ctx with parent, a traceparent, as its remote span. Anything
// that isn't valid by W3C Trace Context § 3.2 leaves ctx as it is.
func contextWith(ctx context.Context, parent string) context.Context {
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{traceparent: parent})
}
