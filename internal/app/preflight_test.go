package app

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/stormpost/stormpost/internal/config"
	"github.com/stormpost/stormpost/internal/sim"
)

// keyed configures the providers that have simulators, each with its good key.
func keyed(t *testing.T, s *sim.Sims) config.Config {
	t.Helper()
	c := config.Default()
	c.SES.Region, c.SES.BaseURL, c.SES.Key = sim.SESRegion, s.SES.URL(), config.Live(sim.SESKeyID+":"+sim.SESSecret)
	c.Resend.BaseURL, c.Resend.Key = s.Resend.URL(), sim.ResendKey
	c.Postmark.BaseURL, c.Postmark.Key = s.Postmark.URL(), sim.PostmarkKey
	c.SendGrid.BaseURL, c.SendGrid.Key = s.SendGrid.URL(), sim.SendGridKey
	return c
}

// Each route signs in before its process is ready, and what preflight and
// credentials test say is the same: a wrong key fails by its credential's name.
func TestKeysAreTried(t *testing.T) {
	sims, err := sim.StartAll(t.Context(), sim.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer sims.Close()
	for name, tc := range map[string]struct {
		spoil func(*config.Config)
		bad   string // the route that fails
	}{
		"all good":     {func(*config.Config) {}, ""},
		"ses":          {func(c *config.Config) { c.SES.Key = "AKIASIMULATED:CANARY" }, "ses"},
		"resend":       {func(c *config.Config) { c.Resend.Key = "re_CANARY" }, "resend"},
		"postmark":     {func(c *config.Config) { c.Postmark.Key = "CANARY" }, "postmark"},
		"sendgrid":     {func(c *config.Config) { c.SendGrid.Key = "SG.CANARY" }, "sendgrid"},
		"resend, away": {func(c *config.Config) { c.Resend.BaseURL = "http://127.0.0.1:1" }, "resend"},
	} {
		t.Run(name, func(t *testing.T) {
			c := keyed(t, sims)
			tc.spoil(&c)
			checks := preflightCredentials(t.Context(), c)
			if len(checks) != len(c.Email()) {
				t.Fatalf("checks %v, of %v", checks, c.Email())
			}
			for _, check := range checks {
				bad := tc.bad != "" && check.Name == "credential "+tc.bad+" of "+tc.bad
				if (len(check.Findings) > 0) != bad || strings.Contains(strings.Join(check.Findings, ""), "CANARY") {
					t.Errorf("preflight: %+v", check)
				}
			}
			p := &process{cfg: c, log: slog.New(slog.DiscardHandler)}
			defer p.teardown()
			if _, err := p.buildProviders(); err != nil {
				t.Fatal(err)
			}
			r := newReadiness(p.creds.uses)
			for _, u := range p.creds.uses {
				r.try(t.Context(), u)
			}
			for _, check := range r.checks() {
				// Who can't be reached says nothing about a key that is there.
				bad := check.Name == "credential of "+tc.bad && !strings.HasSuffix(name, "away")
				if (check.Err != nil) != bad {
					t.Errorf("ready: %s: %v", check.Name, check.Err)
				}
			}
			for _, route := range c.Email() {
				tests, found := p.creds.Test(t.Context(), route)
				if !found || len(tests) != 1 || tests[0].Route != route || (tests[0].Err != nil) != (route == tc.bad) {
					t.Errorf("test %s: %+v", route, tests)
				}
			}
		})
	}
}

// What can't be made is a finding, by its setting.
func TestPreflightTellsBadSettings(t *testing.T) {
	c := config.Default()
	c.Resend.Key = "file:/nowhere/at/all"
	if checks := preflightCredentials(t.Context(), c); len(checks) != 1 || !strings.Contains(strings.Join(checks[0].Findings, ""), "resend.key") {
		t.Errorf("%+v", checks)
	}
}
