package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestLoadFileAndEnvironment(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "password")
	file := filepath.Join(dir, "stormpost.yaml")
	write(t, secret, "hunter2\n")
	write(t, file, `
listen: 0.0.0.0:9000
dsn: postgres://app@db/stormpost
delivery:
  senders: {transactional.email: 7}
  retry_base: 5s
smtp:
  addr: relay:587
  username: shop
  password: file:`+secret+`
  dkim:
    - {domain: example.com, selector: s1, key: "env:DKIM"}
`)
	c, err := Load(file, []string{"STORMPOST_SMTP_ADDR=other:25", "STORMPOST_BROKERS=a:1,b:2", "STORMPOST_DELIVERY_DOUBTS=trigger.push=resend", "STORMPOST_TEST_DSN=x", "DKIM=pem", "HOME=/"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if c.Listen != "0.0.0.0:9000" || c.SMTP.Addr != "other:25" || len(c.Brokers) != 2 || c.Delivery.Senders["transactional.email"] != 7 ||
		c.Delivery.RetryBase != 5*time.Second || c.Delivery.RetryMax != time.Hour || c.Delivery.Doubts["trigger.push"] != "resend" {
		t.Errorf("%+v", c)
	}
	if path, ok := c.SMTP.Password.File(); !ok || path != secret || c.SMTP.DKIM[0].Key.Reveal() != "pem" {
		t.Errorf("secrets were not resolved: %s", c.SMTP.Password)
	}
	c.FCM.ServiceAccount = "hunter2"
	if l, err := live("env:X", []string{"X=file:hunter2"}, c.Secrets.rules()); err != nil || l.Value() != "file:hunter2" || strings.Contains(fmt.Sprint(l), "hunter2") {
		t.Errorf("a variable's content is taken for a reference: %s, %v", l, err)
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(format, c); strings.Contains(s, "hunter2") || strings.Contains(s, "app@db") {
			t.Errorf("%s shows a secret: %s", format, s)
		}
	}
}

func TestClusters(t *testing.T) {
	c, err := Load("", []string{"STORMPOST_DSN=x", "STORMPOST_CLUSTERS=b=h1:9092 h2:9092,c=h3:9092", "STORMPOST_KAFKA_STANDBY=b"})
	if err == nil {
		err = c.Validate()
	}
	if err != nil || c.Clusters["b"] != "h1:9092 h2:9092" || c.Clusters["c"] != "h3:9092" || c.Kafka.Standby != "b" {
		t.Errorf("%v %+v %v", c.Clusters, c.Kafka, err)
	}
}

func TestLoadNamesWhatIsWrong(t *testing.T) {
	for name, test := range map[string]struct{ yaml, env, want string }{
		"unknown key":      {"lisen: x", "", "lisen"},
		"unknown inner":    {"smtp: {adr: x}", "", "adr"},
		"unknown variable": {"", "STORMPOST_LISEN=x", "STORMPOST_LISEN"},
		"bad duration":     {"ledger: {deadline: soon}", "", "deadline"},
		"zero duration":    {"ledger: {deadline: 0s}", "", "ledger.deadline"},
		"no secret file":   {"smtp: {password: 'file:/nowhere/x'}", "", "smtp.password"},
		"no secret var":    {"smtp: {password: 'env:NOPE'}", "", "NOPE"},
		"bad role":         {"roles: [api, cook]", "", "cook"},
		"bad lane":         {"delivery: {senders: {urgent.email: 1}}", "", "urgent.email"},
		"bad policy":       {"delivery: {doubts: {trigger.push: guess}}", "", "guess"},
		"no such provider": {"delivery: {email: [smtp, ses]}", "STORMPOST_SMTP_ADDR=relay:25", "delivery.email[1]"},
		"named twice":      {"delivery: {email: [smtp, smtp]}", "STORMPOST_SMTP_ADDR=relay:25", "delivery.email[1]"},
		"no such key":      {"resend: {key: 'credential:nope'}", "", "resend.key"},
		"region alone":     {"ses: {region: eu-west-1}", "", "ses.key"},
		"bad channel":      {"webhook: {channel: fax}", "", "webhook.channel"},
		"no place":         {"resend: {concurrency: 0}", "", "resend.concurrency"},
		"bad address":      {"smtp: {addr: relay}", "", "smtp.addr"},
		"no objective":     {"incidents: {objective: {trigger: 0s}}", "", "incidents.objective.trigger"},
		"plain webhook":    {"incidents: {webhook: {url: 'http://pager.example/x'}}", "", "incidents.webhook.url"},
		"unsigned webhook": {"incidents: {webhook: {url: 'https://pager.example/x'}}", "", "incidents.webhook.secret"},
		"short secret":     {"incidents: {webhook: {url: 'https://pager.example/x', secret: whsec_c2hvcnQ=}}", "", "incidents.webhook.secret"},
		"no receiver":      {"incidents: {webhook: {secret: whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=}}", "", "incidents.webhook.url"},
		"bad alertmanager": {"incidents: {alertmanager: ['am:9093']}", "", "incidents.alertmanager[0]"},
		"main's broker":    {"clusters: {b: '127.0.0.1:9092'}", "", "is a broker of main"},
		"no brokers":       {"clusters: {b: ' '}", "", "clusters.b"},
		"named main":       {"clusters: {main: 'h:1'}", "", "clusters: want names"},
		"no standby":       {"kafka: {standby: b}", "", "kafka.standby"},
		"no dsn":           {"listen: ':1'", "", "dsn"},

		"no password":        {"smtp: {username: shop}", "", "smtp.username"},
		"auth mode":          {"smtp: {auth: cram}", "", "smtp.auth"},
		"auth without":       {"smtp: {auth: xoauth2}", "", "smtp.auth"},
		"no such name":       {"smtp: {username: u, password: 'credential:relay'}", "", `smtp.password: there is no credential "relay"`},
		"refers to later":    {"credentials: [{name: a, source: value, value: 'credential:b'}, {name: b, source: value, value: x}]", "", "credentials[0] (a).value: there is no credential"},
		"refers to itself":   {"credentials: [{name: a, source: value, value: 'credential:a'}]", "", "credentials[0] (a).value: there is no credential"},
		"twice":              {"credentials: [{name: a, source: value, value: x}, {name: a, source: value, value: y}]", "", "credentials[1] (a).name: is taken"},
		"taken":              {"credentials: [{name: smtp, source: value, value: x}]", "", "credentials[0] (smtp).name: is taken"},
		"bad name":           {"credentials: [{name: 'A b', source: value, value: x}]", "", "credentials[0] (A b).name"},
		"no source":          {"credentials: [{name: a}]", "", "credentials[0] (a).source"},
		"no secret named":    {"credentials: [{name: a, source: value}]", "", "credentials[0] (a).value: is required"},
		"no credential var":  {"credentials: [{name: a, source: value, value: 'env:NOPE'}]", "", "credentials[0].value: variable NOPE is not set"},
		"no credential file": {"credentials: [{name: a, source: apns, key: 'file:/nowhere/x.p8', key_id: ABCDE12345, team_id: TEAM567890}]", "", "credentials[0].key: open /nowhere/x.p8"},
		"out of place":       {"credentials: [{name: a, source: value, value: x, url: 'https://x.example'}]", "", "credentials[0] (a).url: means nothing with source value"},
		"plain endpoint":     {"credentials: [{name: a, source: client-credentials, url: 'http://login.example/token', client_id: c}]", "", "credentials[0] (a).url: is plain http to another host"},
		"plain vault":        {"credentials: [{name: a, source: vault, url: 'http://vault.example', token: x, path: y}]", "", "credentials[0] (a).url: is plain http"},
		"lease with mount":   {"credentials: [{name: a, source: vault-lease, url: 'https://vault.example', token: x, path: y, mount: z}]", "", "credentials[0] (a).mount: means nothing with source vault-lease"},
		"plain token_url":    {"fcm: {token_url: 'http://login.example/token'}", "", "fcm.token_url: is plain http"},
		"bad key id":         {"credentials: [{name: a, source: apns, key: x, key_id: short, team_id: TEAM567890}]", "", "credentials[0] (a).key_id: want ten"},
		"two ways":           {"fcm: {token: x, service_account: y, project: p}", "", "fcm.token: want it or fcm.service_account"},
		"no project":         {"fcm: {token: x}", "", "fcm.project: is required"},
		"outside of root":    {"secrets: {root: /run/secrets}\nsmtp: {username: u, password: 'file:/etc/passwd'}", "", "smtp.password: /etc/passwd is outside of secrets.root"},
		"world-readable":     {"smtp: {username: u, password: 'file:/etc/passwd'}", "", "smtp.password: /etc/passwd can be read or changed by anyone"},
		"a folder":           {"dsn: 'file:/etc'", "", "dsn: /etc is not a regular file"},
		"safe without key":   {"secrets: {safe: /var/lib/stormpost/safe}", "", "secrets.safe: want both"},
		"key without safe":   {"secrets: {safe_key: x}", "", "secrets.safe: want both"},
		"short safe key":     {"secrets: {safe: /x, safe_key: c2hvcnQ=}", "", "secrets.safe_key: want 32 random bytes"},
		"open safe key":      {"secrets: {safe: /x, safe_key: 'file:/etc/passwd'}", "", "secrets.safe_key: /etc/passwd can be read or changed by anyone"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "c.yaml")
			write(t, file, test.yaml)
			c, err := Load(file, []string{test.env})
			if err == nil {
				err = c.Validate()
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %v doesn't name %s", err, test.want)
			}
		})
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestEmailProviders(t *testing.T) {
	c := Default()
	if got := c.Email(); len(got) != 0 {
		t.Errorf("none is configured, but %v", got)
	}
	c.SMTP.Addr, c.SES.Region, c.SES.Key, c.Resend.Key, c.Postmark.Key, c.SendGrid.Key, c.Webhook.URL = "a:1", "eu-west-1", "a:b", "k", "k", "k", "https://r.example"
	if got := strings.Join(c.Email(), " "); got != "smtp ses resend postmark sendgrid webhook" {
		t.Errorf("in order: %s", got)
	}
	c.Webhook.Channel, c.Delivery.Email = "push", []string{"resend", "smtp"}
	if got := strings.Join(c.Email(), " "); got != "resend smtp" {
		t.Errorf("as set: %s", got)
	}
	c.DSN = "postgres://x"
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	c.Delivery.Email = []string{"webhook"}
	if err := c.Validate(); err == nil {
		t.Error("a receiver of pushes takes email")
	}
	c.Postmark.ReplyLimit = time.Hour
	if c.ReplyLimit() != time.Hour {
		t.Errorf("the longest reply limit is %v", c.ReplyLimit())
	}
}
