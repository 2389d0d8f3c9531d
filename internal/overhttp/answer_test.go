package overhttp

import (
	"strings"
	"testing"
	"time"
)

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "30": 30 * time.Second, " 7 ": 7 * time.Second, "-5": 0, "99999999": time.Hour, "9999999999999999999999": 0,
		"Tue, 24 Nov 2026 12:01:30 GMT": 90 * time.Second, "Tue, 24 Nov 2026 11:00:00 GMT": 0,
		"Tue, 24 Nov 2099 12:00:00 GMT": time.Hour, "soon": 0,
	} {
		if got := RetryAfter(value, now); got != want {
			t.Errorf("Retry-After %q is %v, want %v", value, got, want)
		}
	}
}

// A status about everybody is the service's fault.
func TestFault(t *testing.T) {
	for status, want := range map[int]bool{200: false, 400: false, 401: true, 403: false, 422: false, 429: true, 500: true, 503: true} {
		if r := (Answer{Status: status}).Result("", ""); r.Fault != want {
			t.Errorf("%d: fault %v", status, r.Fault)
		}
	}
}

func TestLine(t *testing.T) {
	for in, want := range map[string]string{
		"a\r\nb\tc": "a  b c", " key s3cret, s3cret ": "key [secret], [secret]",
		strings.Repeat("é", 300): strings.Repeat("é", 250), "x" + strings.Repeat("é", 300): "x" + strings.Repeat("é", 249),
	} {
		if got := Line(in, "", "s3cret"); got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
}
