package cli

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestSettingsAreUsage(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "stormpost.yaml")
	if err := os.WriteFile(bad, []byte("lisen: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		environ []string
		args    []string
		says    string
	}{
		"unknown variable":  {[]string{"STORMPOST_LISEN=x"}, []string{"serve"}, "STORMPOST_LISEN"},
		"everywhere":        {[]string{"STORMPOST_LISEN=x"}, []string{"migrate"}, "STORMPOST_LISEN"},
		"not a number":      {[]string{"STORMPOST_DSN=postgres://h/d", "STORMPOST_LEDGER_BATCH=many"}, []string{"serve"}, "ledger.batch"},
		"out of range":      {[]string{"STORMPOST_DSN=postgres://h/d", "STORMPOST_SMTP_CONNECTIONS=0"}, []string{"serve"}, "smtp.connections"},
		"rate below 0":      {[]string{"STORMPOST_DSN=postgres://h/d", "STORMPOST_FCM_RATE=-1"}, []string{"serve"}, "fcm.rate"},
		"no DSN":            {nil, []string{"serve"}, "dsn"},
		"no DSN for keys":   {nil, []string{"keys", "list"}, "STORMPOST_DSN"},
		"unknown role":      {[]string{"STORMPOST_DSN=postgres://h/d"}, []string{"serve", "--roles", "cook"}, "cook"},
		"unknown key":       {nil, []string{"serve", "--config", bad}, "lisen"},
		"file by variable":  {[]string{"STORMPOST_CONFIG=" + bad}, []string{"serve"}, "lisen"},
		"no settings file":  {nil, []string{"serve", "--config", bad + "x"}, bad + "x"},
		"no API configured": {nil, []string{"messages", "--data", t.TempDir()}, "--api"},
	} {
		t.Run(name, func(t *testing.T) {
			r := run(t, test.environ, test.args...)
			if r.code != exitUsage || !strings.Contains(r.err, test.says) {
				t.Errorf("exit %d, says %q, want %d and %q", r.code, r.err, exitUsage, test.says)
			}
		})
	}
}

// What is wrong with the configuration is told at start, by the setting's name
// and what is wanted, and ends serve with 2; what another may mend, with 1.
func TestServeChecksSettings(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir := t.TempDir()
	dkim := filepath.Join(dir, "dkim.yaml")
	if err := os.WriteFile(dkim, []byte("smtp: {addr: 'relay:25', dkim: [{domain: a.example, selector: s, key: none}]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const sasl = "KAFKA_SASL_USERNAME=u|KAFKA_SASL_PASSWORD=p|"
	const decoding = "config: decoding failed due to the following error(s):\n\n"
	for _, test := range []struct {
		env  string // STORMPOST_*, divided by |
		code int
		says string // it begins with
	}{
		{"LOG_LEVEL=info", exitOK, ""},
		{"METRICS_LISTEN=" + taken.Addr().String(), exitFailed, "metrics_listen: listen tcp"},

		// Numbers and names.
		{"ACCEPT_PATIENCE=9s", exitUsage, "accept.patience: want at most half of accept.timeout, 5s"},
		{"ACCEPT_PATIENCE=5s", exitOK, ""},
		{"ACCEPT_TIMEOUT=1ms|ACCEPT_PATIENCE=500us", exitUsage, "accept.timeout: want 1s to 1m0s, not 1ms"},
		{"ACCEPT_SHIELD=-1s", exitUsage, "accept.shield: want 0, for never, or more, not -1s"},
		{"RETENTION_CONTENT=-1h", exitUsage, "retention.content: want 0, for ever, or more, not -1h"},
		{"RETENTION_MESSAGES=-1h", exitUsage, "retention.messages: want 0, for ever, or more, not -1h"},
		{"RETENTION_MESSAGES=1h", exitUsage, "retention.messages: want 0, for ever, or at least retention.content, 336h"},
		{"RETENTION_CONTENT=0", exitUsage, "retention.messages: want 0, for ever, as retention.content, not 4320h"},
		{"RETENTION_CONTENT=0|RETENTION_MESSAGES=0", exitOK, ""},
		{"DELIVERY_RETRY_BASE=2h", exitUsage, "delivery.retry_base: want at most delivery.retry_max, 1h"},
		{"GUARD_EVERY=100h", exitUsage, "guard.every: want 100ms to 1m0s, not 100h"},
		{"KAFKA_PREFIX=a b", exitUsage, `kafka.prefix: want 1 to 200 letters, digits, ., _ and -, not "a b"`},
		{"KAFKA_PREFIX=", exitUsage, `kafka.prefix: want 1 to 200 letters, digits, ., _ and -, not ""`},
		{"BROKERS=h:1,a:b", exitUsage, `brokers[1]: want HOST:PORT, the port from 1 to 65535, not "a:b"`},
		{"BROKERS=a:99999", exitUsage, `brokers[0]: want HOST:PORT, the port from 1 to 65535, not "a:99999"`},
		{"BROKERS=:9092", exitUsage, `brokers[0]: want HOST:PORT`},
		{"SMTP_ADDR=:25", exitUsage, `smtp.addr: want HOST:PORT`},
		{"CLUSTERS=b=a:0", exitUsage, `clusters.b: want HOST:PORT, the port from 1 to 65535, divided by spaces, not "a:0"`},
		{"CLUSTERS=b=a:1,b=c:1", exitUsage, decoding + `'clusters' names b twice`},
		{"LISTEN=127.0.0.1:99999", exitUsage, `listen: want HOST:PORT, the port from 0 to 65535, not "127.0.0.1:99999"`},
		{"METRICS_LISTEN=:x", exitUsage, `metrics_listen: want HOST:PORT, the port from 0 to 65535, not ":x"`},
		{"LOG_LEVEL=loud", exitUsage, "log.level: want debug, info, warn or error"},
		{"LOG_FORMAT=xml", exitUsage, "log.format: want json or text"},
		{"DSN=foo", exitUsage, "dsn: not a PostgreSQL connection string"},

		// Files and folders.
		{"DATA_DIR=", exitUsage, "data_dir: is required"},
		{"DATA_DIR=/proc/x", exitUsage, "data_dir: want a folder that can be written to: mkdir /proc/x"},
		{"DATA_DIR=/proc", exitUsage, "data_dir: want a folder that can be written to: open /proc/"},
		{"SECRETS_ROOT=/nope", exitUsage, `secrets.root: want a folder that is there, not "/nope"`},
		{"SECRETS_ROOT=" + dkim, exitUsage, "secrets.root: want a folder that is there"},
		{"TLS_CERT=/nope", exitUsage, "tls.key: is required with tls.cert"},
		{"TLS_KEY=/nope", exitUsage, "tls.cert: is required with tls.key"},
		{"TLS_CERT=/nope|TLS_KEY=" + dkim, exitUsage, "tls.cert: open /nope"},
		{"TLS_CERT=" + dkim + "|TLS_KEY=/nope", exitUsage, "tls.key: open /nope"},
		{"TLS_CERT=" + dkim + "|TLS_KEY=" + dkim, exitUsage, "tls.cert with tls.key: "},

		// How Kafka is signed in to.
		{sasl + "KAFKA_SASL_MECHANISM=PLAIN", exitOK, ""},
		{sasl + "KAFKA_SASL_MECHANISM=MD5", exitUsage, `kafka.sasl_mechanism: want PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512, not "MD5"`},
		{"KAFKA_SASL_MECHANISM=PLAIN", exitUsage, "kafka.sasl_username: is required with kafka.sasl_mechanism"},
		{"KAFKA_SASL_MECHANISM=PLAIN|KAFKA_SASL_USERNAME=u", exitUsage, "kafka.sasl_password: is required with kafka.sasl_mechanism"},
		{"KAFKA_SASL_PASSWORD=p", exitUsage, "kafka.sasl_mechanism: is required with kafka.sasl_username and kafka.sasl_password"},

		// Providers.
		{"DELIVERY_EMAIL=foo", exitUsage, `delivery.email[0]: no provider "foo" is configured for email, nor any other`},
		{"DELIVERY_EMAIL=foo|SMTP_ADDR=h:25|RESEND_KEY=k", exitUsage, `delivery.email[0]: no provider "foo" is configured for email, only smtp, resend`},
		{"SMTP_ADDR=h:25|SMTP_LOCAL_NAME=a b", exitUsage, "smtp.local_name: "},
		{"CONFIG=" + dkim, exitUsage, "smtp.dkim[0].key: "},
		{"SES_REGION=nowhere|SES_KEY=a:b", exitUsage, "ses.region: want a region"},
		{"SES_REGION=eu-west-1|SES_KEY=a", exitUsage, "ses.key: is not ID:SECRET"},
		{"RESEND_KEY=k|RESEND_BASE_URL=x", exitUsage, "resend.base_url: is not an http"},
		{"POSTMARK_KEY=k|POSTMARK_BASE_URL=x", exitUsage, "postmark.base_url: is not an http"},
		{"SENDGRID_KEY=k|SENDGRID_BASE_URL=x", exitUsage, "sendgrid.base_url: is not an http"},
		{"FCM_SERVICE_ACCOUNT=x", exitUsage, "fcm.service_account: is not"},
		{"FCM_SERVICE_ACCOUNT={}", exitUsage, "fcm.service_account.type: want"},
		{"FCM_TOKEN=t|FCM_PROJECT=p|FCM_BASE_URL=x", exitUsage, "fcm.base_url: is not an http"},
		{"APNS_TOPIC=t", exitUsage, "apns.key: is required with apns.topic"},
		{"APNS_KEY=k", exitUsage, "apns.topic: is required with apns.key"},
		{"APNS_TOPIC=t|APNS_KEY=k", exitUsage, "apns.team_id: want ten"},
		{"APNS_TOPIC=t|APNS_KEY=k|APNS_CA=x", exitUsage, "apns.ca: holds no certificate"},
		{"WEBPUSH_SUBJECT=mailto:a@b.example", exitUsage, "webpush.vapid_key: is required with webpush.subject"},
		{"WEBPUSH_VAPID_KEY=k", exitUsage, "webpush.subject: is required with webpush.vapid_key"},
		{"WEBPUSH_SUBJECT=x|WEBPUSH_VAPID_KEY=k", exitUsage, "webpush.vapid_key: is neither a PEM key nor 32 bytes in base64url\nwebpush.subject: want mailto"},
		{"WEBHOOK_URL=x|WEBHOOK_SECRET=y", exitUsage, "webhook.url: is not an http"},
		{"WEBHOOK_URL=https://h.example", exitUsage, "webhook.secret: "},
		{"WEBHOOK_URL=https://h.example|WEBHOOK_CHANNEL=push|WEBHOOK_NEXT_SECRET=y|WEBHOOK_SECRET=whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", exitUsage, "webhook.next_secret: "},
		{"SES_EVENTS_TOPIC=x", exitUsage, "ses.events_topic: "},
		{"RESEND_EVENTS_SECRET=x", exitUsage, "resend.events_secret: "},
		{"POSTMARK_EVENTS_PASSWORD=x", exitUsage, "postmark.events_password: want at least 16"},
		{"SENDGRID_EVENTS_KEY=x", exitUsage, "sendgrid.events_key: "},
	} {
		t.Run(test.env, func(t *testing.T) {
			environ := []string{"STORMPOST_LISTEN=127.0.0.1:0", "STORMPOST_METRICS_LISTEN=127.0.0.1:0", "STORMPOST_DATA_DIR=" + dir,
				"STORMPOST_DSN=postgres://nobody@127.0.0.1:1/none", "STORMPOST_BROKERS=127.0.0.1:1"}
			for _, set := range strings.Split(test.env, "|") {
				name, _, _ := strings.Cut(set, "=")
				environ = slices.DeleteFunc(environ, func(e string) bool { return strings.HasPrefix(e, "STORMPOST_"+name+"=") })
				environ = append(environ, "STORMPOST_"+set)
			}
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			var said bytes.Buffer
			code := Run(ctx, []string{"serve"}, Env{Out: whenReady(stop), Err: &said, Environ: environ})
			if code != test.code || code != exitOK && !strings.HasPrefix(said.String(), "stormpost: "+test.says) {
				t.Errorf("exit %d, says %q, want %d and %q", code, said.String(), test.code, test.says)
			}
		})
	}
}

// whenReady is called when a process logs that it is ready.
type whenReady func()

func (w whenReady) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte(`"msg":"ready"`)) {
		w()
	}
	return len(line), nil
}
