package fcm

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
)

func TestDefaults(t *testing.T) {
	p := newProvider(t, Config{Name: "main", Project: "p1", Token: token(t)}, nil)
	if got := p.cfg.send.String(); got != "https://fcm.googleapis.com/v1/projects/p1/messages:send" {
		t.Errorf("sends to %s", got)
	}
	if p.Name() != "main" || p.Channel() != message.ChannelPush || p.ReplyLimit() != time.Minute || p.cfg.Concurrency != 100 {
		t.Errorf("%s %v %v %d", p.Name(), p.Channel(), p.ReplyLimit(), p.cfg.Concurrency)
	}
}

func token(t *testing.T) *credential.Credential {
	c := credential.New(credential.Config{Name: "main", Source: credential.Fixed("test", "CANARY")})
	t.Cleanup(c.Close)
	return c
}

func TestConfigRefused(t *testing.T) {
	tests := map[string]struct {
		change func(*Config)
		field  string // empty: accepted
	}{
		"good":                {func(*Config) {}, ""},
		"no name":             {func(c *Config) { c.Name = "" }, "name"},
		"no project":          {func(c *Config) { c.Project = "" }, "project"},
		"no token":            {func(c *Config) { c.Token = nil }, "token"},
		"plain to a host":     {func(c *Config) { c.BaseURL = "http://fcm.googleapis.com" }, "base_url"},
		"plain to loopback":   {func(c *Config) { c.BaseURL = "http://127.0.0.1:1/base/" }, ""},
		"plain to localhost":  {func(c *Config) { c.BaseURL = "http://localhost:1" }, ""},
		"plain to [::1]":      {func(c *Config) { c.BaseURL = "http://[::1]:1" }, ""},
		"like localhost":      {func(c *Config) { c.BaseURL = "http://localhost.example" }, "base_url"},
		"user":                {func(c *Config) { c.BaseURL = "https://a:CANARY@fcm.example" }, "base_url"},
		"query":               {func(c *Config) { c.BaseURL = "https://fcm.example?key=CANARY" }, "base_url"},
		"no URL":              {func(c *Config) { c.BaseURL = "fcm.googleapis.com" }, "base_url"},
		"another scheme":      {func(c *Config) { c.BaseURL = "ftp://127.0.0.1" }, "base_url"},
		"not even that":       {func(c *Config) { c.BaseURL = "https://[CANARY" }, "base_url"},
		"concurrency":         {func(c *Config) { c.Concurrency = -1 }, "concurrency"},
		"too much of it":      {func(c *Config) { c.Concurrency = maxConcurrency + 1 }, "concurrency"},
		"reply limit":         {func(c *Config) { c.ReplyLimit = -time.Second }, "reply_limit"},
		"no time for replies": {func(c *Config) { c.ReplyLimit = time.Microsecond }, "reply_limit"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := Config{Name: "main", Project: "p1", Token: token(t)}
			tc.change(&cfg)
			p, err := New(cfg)
			if err == nil {
				p.Close()
			}
			var fields message.FieldErrors
			if tc.field == "" && err == nil {
				return
			}
			if !errors.As(err, &fields) || len(fields) != 1 || fields[0].Field != tc.field {
				t.Fatalf("New: %v, want an error of %q", err, tc.field)
			}
			if text := fmt.Sprint(err); strings.Contains(text, "CANARY") || strings.Contains(text, "PRIVATE") {
				t.Errorf("shows a secret: %s", text)
			}
		})
	}
}
