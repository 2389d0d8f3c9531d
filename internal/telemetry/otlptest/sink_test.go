package otlptest

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
)

func TestWaitEnds(t *testing.T) {
	s := Start(t)
	ctx, cancel := context.WithCancel(t.Context())
	asked := false
	err := s.Wait(ctx, func(spans []Span) bool { asked = true; cancel(); return len(spans) > 0 })
	if !asked || !errors.Is(err, context.Canceled) {
		t.Errorf("asked %v, error %v; want canceled", asked, err)
	}
}

func TestRefuses(t *testing.T) {
	s := Start(t)
	for name, c := range map[string]struct{ contentType, encoding, body string }{
		"json":         {"application/json", "", "{}"},
		"not protobuf": {"application/x-protobuf", "", "nonsense"},
		"not gzip":     {"application/x-protobuf", "gzip", "nonsense"},
		"too long":     {"application/x-protobuf", "", strings.Repeat("x", maxBody+1)},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL()+"/v1/traces", strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", c.contentType)
			r.Header.Set("Content-Encoding", c.encoding)
			answer, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			answer.Body.Close()
			if answer.StatusCode != http.StatusBadRequest {
				t.Errorf("status %d, want 400", answer.StatusCode)
			}
		})
	}
	if spans := s.Spans(); len(spans) != 0 {
		t.Errorf("spans %v from nothing", spans)
	}
}
