package credential

import (
	"context"
	"log/slog"
	"time"
)

// Secret is text that prints as [redacted].
type Secret string

// String hides the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "[redacted]"
}

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return s.String() }

// MarshalText hides the secret from encoders.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue hides the secret from slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Reveal is the secret itself.
func (s Secret) Reveal() string { return string(s) }

// Material is what a Source has to give: one generation.
type Material struct {
	Value Secret
	// Label tells people which one it is, without telling what it is: a key id,
	// a version. It may be empty.
	Label     string
	NotBefore time.Time // zero: at once
	Expires   time.Time // zero: nobody knows
	Issued    time.Time // by the issuer's clock; zero: nobody knows
	// Next is when to ask again. Zero: at three quarters of its life, with
	// jitter; if that isn't known, never but after a rejection.
	Next time.Time

	// of is what it was made of, if the service judges that by it alone; else
	// the zero Use.
	of Use
}

// Source gets generations from where they are made or kept. Fetch is called by
// one goroutine at a time, and returns the same Material again as long as there
// is no newer one. Its error holds no secret. String says where it looks, for
// people.
type Source interface {
	Fetch(ctx context.Context) (Material, error)
	String() string
}

// Fixed is a Source of one value that never changes. Its type is what it is
// called: "environment", "setting".
type fixed struct{ what, value string }

// Fixed is a Source of a value that never changes; what says where it is from.
func Fixed(what, value string) Source { return fixed{what, value} }

func (f fixed) Fetch(context.Context) (Material, error) { return readMaterial(f.value), nil }
func (f fixed) String() string                          { return f.what }
func (f fixed) GoString() string                        { return f.what }
