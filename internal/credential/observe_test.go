package credential

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

// given is a source that gives what is sent to it.
type given chan any

func (g given) Fetch(ctx context.Context) (Material, error) {
	select {
	case x := <-g:
		if err, bad := x.(error); bad {
			return Material{}, err
		}
		return x.(Material), nil
	case <-ctx.Done():
		return Material{}, ctx.Err()
	}
}
func (given) String() string { return "given" }

// Metrics tell of a generation that works, a refresh that fails and one that
// brings nothing of use, and show no secret.
func TestMeasure(t *testing.T) {
	source := make(given)
	c := New(Config{Name: "relay", Source: source})
	defer c.Close()
	reader := metric.NewManualReader()
	if err := Measure(metric.NewMeterProvider(metric.WithReader(reader)), time.Now, func() []Status { return []Status{c.Status()} }); err != nil {
		t.Fatal(err)
	}
	collect := func() (seen map[string]float64, text string) {
		t.Helper()
		var data metricdata.ResourceMetrics
		if err := reader.Collect(t.Context(), &data); err != nil {
			t.Fatal(err)
		}
		seen = make(map[string]float64)
		note := func(name string, p metricdata.DataPoint[int64]) {
			result, _ := p.Attributes.Value("result")
			seen[name+result.AsString()] = float64(p.Value)
		}
		for _, s := range data.ScopeMetrics {
			for _, m := range s.Metrics {
				name := strings.TrimPrefix(m.Name, "stormpost.credential.")
				switch d := m.Data.(type) {
				case metricdata.Sum[int64]:
					for _, p := range d.DataPoints {
						note(name, p)
					}
				case metricdata.Gauge[int64]:
					for _, p := range d.DataPoints {
						note(name, p)
					}
				case metricdata.Gauge[float64]:
					seen[name] = d.DataPoints[0].Value
				}
			}
		}
		b, err := json.Marshal(data)
		if err != nil {
			t.Fatal(err)
		}
		return seen, string(b)
	}
	if seen, _ := collect(); seen["usable"] != 0 {
		t.Errorf("before there is one: %v", seen)
	}
	source <- Material{Value: "CANARY-1", Label: "CANARY-label", Expires: time.Now().Add(time.Hour)}
	use, err := c.Use(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	use.Accepted()
	seen, _ := collect()
	if seen["usable"] != 1 || seen["expiry"] < 3500 || seen["expiry"] > 3600 || seen["refreshesok"] != 1 || seen["refreshesfailed"] != 0 || seen["fallbacks"] != 0 {
		t.Errorf("one that works: %v", seen)
	}
	// A rejection has the source asked again: it fails, and then brings one that
	// has ended.
	use.Rejected("535 CANARY-1")
	source <- errors.New("the token server is away")
	source <- Material{Value: "CANARY-2", Expires: time.Now().Add(-time.Hour)}
	source <- Material{Value: "CANARY-2", Expires: time.Now().Add(-time.Hour)} // the one before was taken
	seen, text := collect()
	if seen["usable"] != 0 || seen["refreshesfailed"] != 1 || seen["rejections"] != 1 || seen["fallbacks"] != 1 || seen["refreshesok"] < 2 {
		t.Errorf("nothing of use: %v", seen)
	}
	if strings.Contains(text, "CANARY") || !strings.Contains(text, "relay") {
		t.Errorf("metrics: %s", text)
	}
}
