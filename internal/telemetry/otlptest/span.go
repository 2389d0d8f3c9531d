package otlptest

import (
	"encoding/base64"
	"encoding/hex"
	"strconv"

	common "go.opentelemetry.io/proto/otlp/common/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
)

// Span is one that has ended and was exported. Ids are lower-case hex, of 32 and
// 16 digits.
type Span struct {
	TraceID  string
	SpanID   string
	ParentID string // empty at a trace's root
	Name     string
	Service  string // service.name of the process
	// Attributes are the span's own, as text. Bytes are in base64; lists and maps
	// are in protobuf's text form, which is for people only.
	Attributes map[string]string
}

func spansOf(all []*trace.ResourceSpans) (spans []Span) {
	for _, r := range all {
		service := textOf(r.GetResource().GetAttributes())["service.name"]
		for _, scope := range r.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				spans = append(spans, Span{
					TraceID:    hex.EncodeToString(s.GetTraceId()),
					SpanID:     hex.EncodeToString(s.GetSpanId()),
					ParentID:   hex.EncodeToString(s.GetParentSpanId()),
					Name:       s.GetName(),
					Service:    service,
					Attributes: textOf(s.GetAttributes()),
				})
			}
		}
	}
	return spans
}

func textOf(attributes []*common.KeyValue) map[string]string {
	text := make(map[string]string, len(attributes))
	for _, a := range attributes {
		switch v := a.GetValue().GetValue().(type) {
		case *common.AnyValue_StringValue:
			text[a.GetKey()] = v.StringValue
		case *common.AnyValue_BoolValue:
			text[a.GetKey()] = strconv.FormatBool(v.BoolValue)
		case *common.AnyValue_IntValue:
			text[a.GetKey()] = strconv.FormatInt(v.IntValue, 10)
		case *common.AnyValue_DoubleValue:
			text[a.GetKey()] = strconv.FormatFloat(v.DoubleValue, 'g', -1, 64)
		case *common.AnyValue_BytesValue:
			text[a.GetKey()] = base64.StdEncoding.EncodeToString(v.BytesValue)
		default:
			text[a.GetKey()] = a.GetValue().String()
		}
	}
	return text
}
