package incident

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	repeatEvery = time.Minute
	// alertLife is how long an alert lives on that nobody repeats any more.
	alertLife = 4 * repeatEvery
)

// Alertmanager is the sink that speaks Alertmanager's API v2. Alerts of the same
// cause by several processes have the same labels, and so are one alert.
type Alertmanager struct {
	name, url string
	client    *http.Client
	now       func() time.Time
	every     time.Duration
}

var _ Repeater = (*Alertmanager)(nil)

// NewAlertmanager makes the sink of the Alertmanager at base, as
// http://alertmanager:9093.
func NewAlertmanager(base string) (*Alertmanager, error) {
	if err := CheckURL(base, true); err != nil {
		return nil, err
	}
	u, err := url.Parse(base)
	if err != nil {
		return nil, err
	}
	return &Alertmanager{
		name: "alertmanager " + u.Host, url: strings.TrimRight(base, "/") + "/api/v2/alerts",
		client: newClient(), now: time.Now, every: repeatEvery,
	}, nil
}

// alert is what POST /api/v2/alerts takes.
type alert struct {
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	StartsAt    time.Time         `json:"startsAt"`
	EndsAt      time.Time         `json:"endsAt"`
}

// Name implements Sink.
func (a *Alertmanager) Name() string { return a.name }

// Every implements Repeater.
func (a *Alertmanager) Every() time.Duration { return a.every }

// Send implements Sink.
func (a *Alertmanager) Send(ctx context.Context, e Event) error {
	all := []Incident{e.Incident}
	if e.Was != "" {
		// By its labels, what it was before is another alert, which ends with this one.
		before := e.Incident
		before.Severity, before.ResolvedAt = e.Was, &e.Incident.UpdatedAt
		all = append(all, before)
	}
	return a.Repeat(ctx, all)
}

// Repeat implements Repeater.
func (a *Alertmanager) Repeat(ctx context.Context, all []Incident) error {
	alerts := make([]alert, len(all))
	for n := range all {
		alerts[n] = a.alertOf(&all[n])
	}
	body, err := json.Marshal(alerts)
	if err != nil {
		return err
	}
	return post(ctx, a.client, a.url, nil, body)
}

// alertOf makes labels of what never changes while the incident is open, since
// they are the alert's identity, and annotations of the rest.
func (a *Alertmanager) alertOf(i *Incident) alert {
	out := alert{
		Labels: map[string]string{
			"alertname": "Stormpost", "service": "stormpost", "kind": string(i.Kind), "cause": i.Cause, "severity": string(i.Severity),
		},
		Annotations: map[string]string{
			"summary": i.Summary, "runbook_url": i.Runbook, "command": i.Command, "incident": i.ID,
			"count": strconv.FormatInt(i.Count, 10), "oldest_age_seconds": strconv.FormatFloat(i.OldestAge, 'f', 1, 64),
		},
		StartsAt: i.OpenedAt, EndsAt: a.now().Add(alertLife),
	}
	if i.Lane != "" {
		out.Labels["lane"] = i.Lane
	}
	if i.ETA != nil {
		out.Annotations["eta_seconds"] = strconv.FormatFloat(*i.ETA, 'f', 0, 64)
	}
	if i.ResolvedAt != nil {
		out.EndsAt = *i.ResolvedAt
	}
	return out
}
