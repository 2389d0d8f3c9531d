package config

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/stormpost/stormpost/internal/credential"
)

// Secrets says which files may hold secrets.
type Secrets struct {
	Root          string `koanf:"root"`           // folder, which is there, that files with secrets must be in, also where their symlinks lead; empty: any
	WorldReadable bool   `koanf:"world_readable"` // take files with secrets that anyone on the machine may read, too, as Kubernetes mounts them by default
	Safe          string `koanf:"safe"`           // folder, made with mode 0700, in which what token servers and vaults gave outlives the process, encrypted; processes of one machine may share it; empty: none
	SafeKey       Secret `koanf:"safe_key"`       // encrypts what is in it: 32 random bytes in base64, as openssl rand -base64 32 makes, or as they are
}

func (s Secrets) rules() credential.FileRules {
	return credential.FileRules{Root: s.Root, WorldReadable: s.WorldReadable}
}

// Credential is a password, token or key that other settings refer to as
// credential:NAME. Source says which of the other fields it needs.
type Credential struct {
	Name   string `koanf:"name"`   // lower-case letters, digits, - and _; smtp and fcm are taken
	Source string `koanf:"source"` // value, client-credentials, refresh-token, service-account, apns, vault or vault-lease

	Value Live `koanf:"value"` // value: the secret, as file:PATH or env:NAME

	URL          string   `koanf:"url"`           // client-credentials, refresh-token: the token endpoint; service-account: another than the account's; vault, vault-lease: the server
	ClientID     string   `koanf:"client_id"`     // client-credentials, refresh-token: the OAuth 2 client
	ClientSecret Live     `koanf:"client_secret"` // the same: its secret; a public client has none
	InBody       bool     `koanf:"in_body"`       // the same: send them in the form instead of by HTTP Basic
	RefreshToken Live     `koanf:"refresh_token"` // refresh-token: the token that access tokens are asked for with
	Scopes       []string `koanf:"scopes"`        // client-credentials, service-account: what the access token is for

	Key    Live   `koanf:"key"`     // service-account: the JSON key file; apns: as apns.key
	KeyID  string `koanf:"key_id"`  // apns: the key's id, if it comes without one
	TeamID string `koanf:"team_id"` // apns: the team's id

	Token     Live          `koanf:"token"`     // vault, vault-lease: a token that may read the secret; it is renewed, if it can be
	Namespace string        `koanf:"namespace"` // vault, vault-lease: the namespace; empty: none
	Mount     string        `koanf:"mount"`     // vault: the KV version 2 engine; default secret
	Path      string        `koanf:"path"`      // vault: the secret below it; vault-lease: what is read to have one made, with its mount, as aws/creds/mail
	Field     string        `koanf:"field"`     // vault: the field of the secret; default value; vault-lease: default password, or several with a colon between, as access_key:secret_key
	Every     time.Duration `koanf:"every"`     // vault: how often to look for a new version, vault-lease: for what has no lease; default 30s
}

// References is the secrets of a credential by the field's name, in order.
func (c *Credential) References() []Reference {
	return []Reference{
		{"value", c.Value}, {"client_secret", c.ClientSecret}, {"refresh_token", c.RefreshToken}, {"key", c.Key}, {"token", c.Token},
	}
}

// Reference is a secret and the setting that gives it.
type Reference struct {
	Field string
	Live  Live
}

// needs lists, by source, the fields that must be set and those that may be.
var needs = map[string]struct{ must, may []string }{
	"value":              {[]string{"value"}, nil},
	"client-credentials": {[]string{"url", "client_id"}, []string{"client_secret", "in_body", "scopes"}},
	"refresh-token":      {[]string{"url", "client_id", "refresh_token"}, []string{"client_secret", "in_body"}},
	"service-account":    {[]string{"key", "scopes"}, []string{"url"}},
	"apns":               {[]string{"key", "team_id"}, []string{"key_id"}},
	"vault":              {[]string{"url", "token", "path"}, []string{"namespace", "mount", "field", "every"}},
	"vault-lease":        {[]string{"url", "token", "path"}, []string{"namespace", "field", "every"}},
}

func (c *Credential) set() map[string]bool {
	set := map[string]bool{
		"url": c.URL != "", "client_id": c.ClientID != "", "in_body": c.InBody, "scopes": len(c.Scopes) > 0, "key_id": c.KeyID != "", "team_id": c.TeamID != "",
		"namespace": c.Namespace != "", "mount": c.Mount != "", "path": c.Path != "", "field": c.Field != "", "every": c.Every != 0,
	}
	for _, r := range c.References() {
		set[r.Field] = r.Live != ""
	}
	return set
}

var credentialName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,39}$`)

func (c *Config) validateCredentials(bad func(key, format string, args ...any)) {
	if root := c.Secrets.Root; root != "" {
		if info, err := os.Stat(root); err != nil || !info.IsDir() {
			bad("secrets.root", "want a folder that is there, not %q", root)
		}
	}
	if (c.Secrets.Safe == "") != (c.Secrets.SafeKey == "") {
		bad("secrets.safe", "want both it and secrets.safe_key, or neither")
	} else if c.Secrets.Safe != "" {
		if _, err := credential.ParseKey(c.Secrets.SafeKey.Reveal()); err != nil {
			bad("secrets.safe_key", "%v", err)
		}
	}
	known := map[string]bool{}
	reference := func(key string, l Live) {
		if name, ok := l.Credential(); ok && !known[name] {
			bad(key, "there is no credential %q (one of credentials must come before those that refer to it)", name)
		}
	}
	for i := range c.Credentials {
		cr := &c.Credentials[i]
		key := fmt.Sprintf("credentials[%d].", i)
		if cr.Name != "" {
			key = fmt.Sprintf("credentials[%d] (%s).", i, cr.Name)
		}
		cr.validate(func(field, format string, args ...any) { bad(key+field, format, args...) })
		for _, r := range cr.References() {
			reference(key+r.Field, r.Live)
		}
		if known[cr.Name] || slices.Contains(providerNames, cr.Name) {
			bad(key+"name", "is taken")
		}
		known[cr.Name] = true
	}
	reference("smtp.password", c.SMTP.Password)
	reference("ses.key", c.SES.Key)
	reference("resend.key", c.Resend.Key)
	reference("postmark.key", c.Postmark.Key)
	reference("sendgrid.key", c.SendGrid.Key)
	reference("fcm.service_account", c.FCM.ServiceAccount)
	reference("fcm.token", c.FCM.Token)
	if (c.SMTP.Username == "") != (c.SMTP.Password == "") {
		bad("smtp.username", "want both username and password, or neither")
	}
	if c.SMTP.Auth != "" && c.SMTP.Password == "" {
		bad("smtp.auth", "%s needs smtp.username and smtp.password", c.SMTP.Auth)
	}
	_, named := c.FCM.ServiceAccount.Credential()
	switch {
	case c.FCM.Token != "" && c.FCM.ServiceAccount != "":
		bad("fcm.token", "want it or fcm.service_account, not both")
	case (c.FCM.Token != "" || named) && c.FCM.Project == "":
		bad("fcm.project", "is required, since no file here says it")
	}
	if c.FCM.TokenURL != "" {
		if _, err := credential.CheckURL(c.FCM.TokenURL); err != nil {
			bad("fcm.token_url", "%v", err)
		}
	}
}

func (c *Credential) validate(bad func(field, format string, args ...any)) {
	if !credentialName.MatchString(c.Name) {
		bad("name", "want lower-case letters, digits, - and _, at most 40")
	}
	n, ok := needs[c.Source]
	if !ok {
		var all []string
		for name := range needs {
			all = append(all, name)
		}
		slices.Sort(all)
		bad("source", "want one of %s", strings.Join(all, ", "))
		return
	}
	set := c.set()
	for _, field := range n.must {
		if !set[field] {
			bad(field, "is required with source %s", c.Source)
		}
	}
	for _, field := range slices.Sorted(maps.Keys(set)) {
		if set[field] && !slices.Contains(n.must, field) && !slices.Contains(n.may, field) {
			bad(field, "means nothing with source %s", c.Source)
		}
	}
	if c.URL != "" {
		if _, err := credential.CheckURL(c.URL); err != nil {
			bad("url", "%v", err)
		}
	}
	if c.Source == "apns" && c.TeamID != "" {
		a := credential.APNs{KeyID: c.KeyID, TeamID: c.TeamID}
		if err := a.Check(); err != nil {
			field, problem, _ := strings.Cut(err.Error(), ": ")
			bad(field, "%s", problem)
		}
	}
	if c.Every != 0 && c.Every < time.Second {
		bad("every", "want a second or more")
	}
}
