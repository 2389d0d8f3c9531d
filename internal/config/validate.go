package config

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stormpost/stormpost/internal/incident"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

// Error is of a configuration that is wrong: nothing helps but to change it.
type Error struct{ error }

// Wrong makes err an Error, unless it is nil.
func Wrong(err error) error {
	if err == nil {
		return nil
	}
	return Error{err}
}

// Unwrap is what is wrong.
func (e Error) Unwrap() error { return e.error }

// Validate names every setting that is wrong, in an Error.
func (c *Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	address := func(key, addr string, least int) {
		if !IsAddress(addr, least) {
			bad(key, "want HOST:PORT, the port from %d to 65535, not %q", least, addr)
		}
	}
	both := func(a string, hasA bool, b string, hasB bool) {
		switch {
		case hasA && !hasB:
			bad(b, "is required with %s", a)
		case hasB && !hasA:
			bad(a, "is required with %s", b)
		}
	}
	if c.DSN == "" {
		bad("dsn", "is required, as postgres://user@host/database")
	}
	if len(c.Brokers) == 0 {
		bad("brokers", "want at least one HOST:PORT")
	}
	for i, b := range c.Brokers {
		address(fmt.Sprintf("brokers[%d]", i), b, 1)
	}
	c.validateClusters(bad)
	if len(c.Roles) == 0 {
		bad("roles", "want some of %s", strings.Join(roles, ", "))
	}
	for _, r := range c.Roles {
		if !slices.Contains(roles, r) {
			bad("roles", "unknown role %q: want some of %s", r, strings.Join(roles, ", "))
		}
	}
	if c.Listen != "" || c.Has("api") {
		address("listen", c.Listen, 0)
	}
	if c.MetricsListen != "" {
		address("metrics_listen", c.MetricsListen, 0)
	}
	if c.SMTP.Addr != "" {
		address("smtp.addr", c.SMTP.Addr, 1)
	}
	if c.DataDir == "" {
		bad("data_dir", "is required")
	}
	both("tls.cert", c.TLS.Cert != "", "tls.key", c.TLS.Key != "")
	if !slices.Contains([]string{"starttls-if-offered", "starttls-required", "implicit"}, c.SMTP.TLS) {
		bad("smtp.tls", "want starttls-if-offered, starttls-required or implicit, not %q", c.SMTP.TLS)
	}
	if !slices.Contains([]string{"", "xoauth2", "oauthbearer"}, c.SMTP.Auth) {
		bad("smtp.auth", "want xoauth2, oauthbearer or nothing, not %q", c.SMTP.Auth)
	}
	c.Kafka.validate(bad)
	c.validateNumbers(bad)
	c.validateTimes(bad)
	c.validateProviders(bad)
	c.validateCredentials(bad)
	if c.Has("worker") { // the providers check the rest
		both("apns.topic", c.APNs.Topic != "", "apns.key", c.APNs.Key != "")
		both("webpush.subject", c.WebPush.Subject != "", "webpush.vapid_key", c.WebPush.VAPIDKey != "")
	}
	c.Incidents.validate(bad)
	return Wrong(errors.Join(errs...))
}

// IsAddress says whether addr is HOST:PORT. With 0 for the least port it is to
// listen on, which needs no host.
func IsAddress(addr string, least int) bool {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" && least > 0 {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && int(n) >= least
}

var topicPrefix = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,200}$`)

func (k *Kafka) validate(bad func(key, format string, args ...any)) {
	if !topicPrefix.MatchString(k.Prefix) {
		bad("kafka.prefix", "want 1 to 200 letters, digits, ., _ and -, not %q", k.Prefix)
	}
	switch {
	case k.Mechanism == "" && (k.Username != "" || k.Password != ""):
		bad("kafka.sasl_mechanism", "is required with kafka.sasl_username and kafka.sasl_password")
	case k.Mechanism != "" && k.Username == "":
		bad("kafka.sasl_username", "is required with kafka.sasl_mechanism")
	case k.Mechanism != "" && k.Password == "":
		bad("kafka.sasl_password", "is required with kafka.sasl_mechanism")
	}
}

func (c *Config) validateClusters(bad func(key, format string, args ...any)) {
	for name, list := range c.Clusters {
		brokers := strings.Fields(list)
		if !clusterName.MatchString(name) || name == message.MainCluster {
			bad("clusters", "want names of a-z, 0-9 and -, and not main, which is the cluster of brokers; not %q", name)
		}
		if len(brokers) == 0 {
			bad("clusters."+name, "want at least one HOST:PORT")
		}
		for _, b := range brokers {
			if !IsAddress(b, 1) {
				bad("clusters."+name, "want HOST:PORT, the port from 1 to 65535, divided by spaces, not %q", b)
			} else if slices.Contains(c.Brokers, b) {
				bad("clusters."+name, "%s is a broker of main", b)
			}
		}
	}
	if len(c.Clusters) > 8 {
		bad("clusters", "want at most 8, not %d", len(c.Clusters))
	}
	if _, ok := c.Clusters[c.Kafka.Standby]; c.Kafka.Standby != "" && !ok {
		bad("kafka.standby", "is none of clusters: %q", c.Kafka.Standby)
	}
}

var clusterName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,39}$`)

func (i *Incident) validate(bad func(key, format string, args ...any)) {
	if len(i.Alertmanager) > 10 {
		bad("incidents.alertmanager", "want at most 10 URLs, not %d", len(i.Alertmanager))
	}
	for n, u := range i.Alertmanager {
		if err := incident.CheckURL(u, true); err != nil {
			bad(fmt.Sprintf("incidents.alertmanager[%d]", n), "%v", err)
		}
	}
	if err := incident.CheckURL(i.Runbook, true); err != nil {
		bad("incidents.runbook", "%v", err)
	}
	if i.Webhook.URL == "" {
		if i.Webhook.Secret != "" {
			bad("incidents.webhook.url", "is required beside incidents.webhook.secret")
		}
		return
	}
	if err := incident.CheckURL(i.Webhook.URL, false); err != nil {
		bad("incidents.webhook.url", "%v", err)
	}
	if _, err := overhttp.ParseSecret(i.Webhook.Secret.Reveal()); err != nil {
		bad("incidents.webhook.secret", "%v", err)
	}
}

// validateTimes looks at times that have bounds, or are bound to one another.
func (c *Config) validateTimes(bad func(key, format string, args ...any)) {
	for _, t := range []struct {
		key             string
		is, least, most time.Duration
	}{
		{"accept.timeout", c.Accept.Timeout, time.Second, time.Minute},
		{"guard.every", c.Guard.Every, 100 * time.Millisecond, time.Minute},
	} {
		if t.is < t.least || t.is > t.most {
			bad(t.key, "want %v to %v, not %v", t.least, t.most, t.is)
		}
	}
	if half := c.Accept.Timeout / 2; c.Accept.Patience > half {
		bad("accept.patience", "want at most half of accept.timeout, %v, not %v", half, c.Accept.Patience)
	}
	if c.Accept.Shield < 0 {
		bad("accept.shield", "want 0, for never, or more, not %v", c.Accept.Shield)
	}
	if c.Delivery.RetryBase > c.Delivery.RetryMax {
		bad("delivery.retry_base", "want at most delivery.retry_max, %v, not %v", c.Delivery.RetryMax, c.Delivery.RetryBase)
	}
	r := c.Retention
	switch {
	case r.Content < 0:
		bad("retention.content", "want 0, for ever, or more, not %v", r.Content)
	case r.Messages < 0:
		bad("retention.messages", "want 0, for ever, or more, not %v", r.Messages)
	case r.Messages == 0: // content goes with its message
	case r.Content == 0:
		bad("retention.messages", "want 0, for ever, as retention.content, not %v", r.Messages)
	case r.Messages < r.Content:
		bad("retention.messages", "want 0, for ever, or at least retention.content, %v, not %v", r.Content, r.Messages)
	}
}

func (c *Config) validateNumbers(bad func(key, format string, args ...any)) {
	for key, d := range map[string]time.Duration{
		"ledger.deadline": c.Ledger.Deadline, "ledger.beat_every": c.Ledger.BeatEvery, "accept.patience": c.Accept.Patience,
		"accept.email_life": c.Accept.EmailLife, "accept.push_life": c.Accept.PushLife, "accept.max_schedule": c.Accept.MaxSchedule,
		"delivery.claim_valid": c.Delivery.ClaimValid, "delivery.shutdown_grace": c.Delivery.ShutdownGrace,
		"delivery.retry_base": c.Delivery.RetryBase, "delivery.retry_max": c.Delivery.RetryMax,
		"kafka.evacuate_after": c.Kafka.EvacuateAfter, "smtp.reply_limit": c.SMTP.ReplyLimit, "fcm.reply_limit": c.FCM.ReplyLimit,
		"ses.reply_limit": c.SES.ReplyLimit, "resend.reply_limit": c.Resend.ReplyLimit,
		"postmark.reply_limit": c.Postmark.ReplyLimit, "sendgrid.reply_limit": c.SendGrid.ReplyLimit, "webhook.reply_limit": c.Webhook.ReplyLimit,
		"apns.reply_limit": c.APNs.ReplyLimit, "webpush.reply_limit": c.WebPush.ReplyLimit,
		"incidents.objective.transactional": c.Incidents.Objective.Transactional, "incidents.objective.trigger": c.Incidents.Objective.Trigger,
		"incidents.objective.campaign": c.Incidents.Objective.Campaign,
	} {
		if d <= 0 {
			bad(key, "must be above 0, as 30s")
		}
	}
	for key, n := range map[string]int{
		"ledger.max_conns": c.Ledger.MaxConns, "ledger.batch": c.Ledger.Batch, "ledger.flushers": c.Ledger.Flushers,
		"kafka.partitions": c.Kafka.Partitions, "smtp.connections": c.SMTP.Connections, "fcm.concurrency": c.FCM.Concurrency,
		"ses.concurrency": c.SES.Concurrency, "resend.concurrency": c.Resend.Concurrency, "postmark.concurrency": c.Postmark.Concurrency,
		"sendgrid.concurrency": c.SendGrid.Concurrency, "webhook.concurrency": c.Webhook.Concurrency,
		"apns.concurrency": c.APNs.Concurrency, "apns.connections": c.APNs.Connections,
		"webpush.concurrency": c.WebPush.Concurrency, "webpush.connections": c.WebPush.Connections,
	} {
		if n < 1 || n > 10_000 {
			bad(key, "want 1 to 10000, not %d", n)
		}
	}
	for _, name := range ProviderNames() {
		if r := c.Rate(name); !(r >= 0 && r <= 1e6) {
			bad(name+".rate", "want 0 to 1000000, not %v", r)
		}
	}
	if c.Accept.Backlog < 0 {
		bad("accept.backlog", "want 0 or more, not %d", c.Accept.Backlog)
	}
	if c.Accept.TenantBacklog < 0 {
		bad("accept.tenant_backlog", "want 0 or more, not %d", c.Accept.TenantBacklog)
	}
	if !(c.Accept.TenantRate >= 0 && c.Accept.TenantRate <= 1e9) {
		bad("accept.tenant_rate", "want 0 to 1000000000, not %v", c.Accept.TenantRate)
	}
	for lane, n := range c.Delivery.Senders {
		if _, err := message.ParseLane(lane); err != nil {
			bad("delivery.senders", "%v", err)
		} else if n < 1 || n > 10_000 {
			bad("delivery.senders."+lane, "want 1 to 10000, not %d", n)
		}
	}
	for lane, policy := range c.Delivery.Doubts {
		if _, err := message.ParseLane(lane); err != nil {
			bad("delivery.doubts", "%v", err)
		} else if policy != "hold" && policy != "resend" {
			bad("delivery.doubts."+lane, "want hold or resend, not %q", policy)
		}
	}
}
