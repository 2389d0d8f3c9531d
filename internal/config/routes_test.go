package config

import (
	"strings"
	"testing"
	"time"
)

func TestRoutes(t *testing.T) {
	valid := func(routes ...Route) error {
		c := Default()
		c.DSN, c.SMTP.Addr, c.Resend.Key, c.FCM.Token, c.FCM.Project = "postgres://x", "a:1", "k", "t", "p"
		c.Delivery.Email, c.Delivery.Routes = []string{"smtp"}, routes
		if got := strings.Join(c.EmailProviders(), " "); len(routes) == 1 && routes[0].Channel == "email" && routes[0].Class == "trigger" && got != "smtp resend" {
			t.Errorf("email may go to %s", got)
		}
		if first := strings.Join(c.FirstEmail(), " "); len(routes) == 1 && routes[0].Class == "trigger" && first != "smtp resend" {
			t.Errorf("it goes first to %s", first)
		}
		return c.Validate()
	}
	if err := valid(Route{Channel: "email", Class: "trigger", Tenant: "shop", Providers: []string{"resend", "smtp"}}); err != nil {
		t.Error(err)
	}
	if err := valid(Route{Channel: "push", Providers: []string{"fcm"}}); err != nil {
		t.Error(err)
	}
	for want, r := range map[string]Route{
		"delivery.routes[0].providers[1]: no provider \"ses\"": {Channel: "email", Providers: []string{"smtp", "ses"}},
		"delivery.routes[0].providers[0]: no provider \"fcm\"": {Channel: "email", Providers: []string{"fcm"}},
		"delivery.routes[0].providers[1]: names smtp again":    {Channel: "email", Providers: []string{"smtp", "smtp"}},
		"delivery.routes[0].providers: names none":             {Channel: "email"},
		"delivery.routes[0]: channel":                          {Channel: "fax", Providers: []string{"smtp"}},
		"delivery.routes[0]: class":                            {Channel: "email", Class: "bulk", Providers: []string{"smtp"}},
		"delivery.routes[0]: tenant":                           {Channel: "email", Tenant: "No!", Providers: []string{"smtp"}},
	} {
		if err := valid(r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %s…, not %v", want, err)
		}
	}
	if err := valid(make([]Route, mostRoutes+1)...); err == nil {
		t.Error("too many routes were taken")
	}
}

// RFC 5321 4.5.3.2.6 has a client wait for ten minutes after the final dot.
func TestReplyLimitOfSMTP(t *testing.T) {
	if d := Default().SMTP.ReplyLimit; d != 600*time.Second {
		t.Errorf("smtp.reply_limit is %v", d)
	}
}
