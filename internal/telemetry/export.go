package telemetry

import (
	"fmt"
	"net/url"
	"os"
	"strings"
)

// exports says whether a signal, TRACES or METRICS, is pushed by OTLP, from the
// variables of https://opentelemetry.io/docs/specs/otel/protocol/exporter/ and
// https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/.
// What the SDK would quietly take for its default is an error here. Errors hold
// no endpoint, since it may have a password in it.
func exports(signal string) (bool, error) {
	if strings.EqualFold(setting("OTEL_SDK_DISABLED"), "true") {
		return false, nil
	}
	endpointName, endpoint := either("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
	on := endpoint != ""

	name := "OTEL_" + signal + "_EXPORTER"
	switch exporter := strings.ToLower(setting(name)); {
	case exporter == "":
	case exporter == "otlp":
		on = true // at the standard's http://localhost:4318, unless there is an endpoint
	case exporter == "none":
		on = false
	case exporter == "prometheus" && signal == "METRICS":
		on = false // always there
	default:
		return false, fmt.Errorf("telemetry: %s: want otlp or none, not %q", name, exporter)
	}
	if !on {
		return false, nil
	}
	name, protocol := either("OTEL_EXPORTER_OTLP_"+signal+"_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
	if protocol != "" && protocol != "http/protobuf" {
		return false, fmt.Errorf("telemetry: %s: only http/protobuf is built in, not %q", name, protocol)
	}
	if endpoint != "" {
		u, err := url.Parse(endpoint)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			return false, fmt.Errorf("telemetry: %s: want a URL such as http://localhost:4318", endpointName)
		}
	}
	return true, nil
}

// either is the signal's own setting, or else the general one.
func either(own, general string) (name, value string) {
	if v := setting(own); v != "" {
		return own, v
	}
	return general, setting(general)
}

// setting is a variable's value. An empty one counts as unset.
func setting(name string) string { return strings.TrimSpace(os.Getenv(name)) }
