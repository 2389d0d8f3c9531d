package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/delivery/ses"
	"github.com/stormpost/stormpost/delivery/smtp"
	"github.com/stormpost/stormpost/ingest/httpapi"
	"github.com/stormpost/stormpost/internal/config"
	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/overhttp"
)

// credentials is all that a process signs in with: one credential.Credential for
// each name, however many use it.
type credentials struct {
	p      *process
	client *http.Client     // of token endpoints and vaults
	safe   *credential.Safe // nil: nothing outlives the process
	named  map[string]*credential.Credential
	all    []*credential.Credential // in the order in which they were made
	uses   []signIn
}

// signIn is a route that needs a credential.
type signIn struct {
	route      string
	credential *credential.Credential
	provider   delivery.Authenticator
}

// buildCredentials makes those that the configuration names. What is wrong with a
// secret is an error that names its setting.
func (p *process) buildCredentials() error {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	p.creds = &credentials{p: p, client: &http.Client{Transport: transport}, named: make(map[string]*credential.Credential)}
	if s := p.cfg.Secrets; s.Safe != "" {
		key, err := credential.ParseKey(s.SafeKey.Reveal())
		if err != nil {
			return fmt.Errorf("secrets.safe_key: %w", err)
		}
		if p.creds.safe, err = credential.OpenSafe(s.Safe, key, p.log); err != nil {
			if errors.Is(err, credential.ErrOtherKey) {
				return fmt.Errorf("secrets.safe_key: %w", err)
			}
			return fmt.Errorf("secrets.safe: %w", err)
		}
	}
	checks := p.checksByName()
	for i := range p.cfg.Credentials {
		c := &p.cfg.Credentials[i]
		setting := fmt.Sprintf("credentials[%d] (%s).", i, c.Name)
		made, err := p.creds.make(c, setting, all(checks[c.Name]))
		if err != nil {
			return err
		}
		p.creds.named[c.Name] = made
	}
	return nil
}

// checksByName is what each named credential has to be, by who refers to it.
func (p *process) checksByName() map[string][]func(string) error {
	checks := make(map[string][]func(string) error)
	refer := func(l config.Live, check func(string) error) {
		if name, ok := l.Credential(); ok && check != nil {
			checks[name] = append(checks[name], check)
		}
	}
	refer(p.cfg.SMTP.Password, smtpCheck(p.cfg.SMTP.Auth))
	refer(p.cfg.SES.Key, ses.CheckKey)
	for _, key := range []config.Live{p.cfg.Resend.Key, p.cfg.Postmark.Key, p.cfg.SendGrid.Key} {
		refer(key, overhttp.CheckKey)
	}
	refer(p.cfg.FCM.Token, smtp.CheckToken)
	refer(p.cfg.APNs.Key, credential.CheckP8(p.cfg.APNs.KeyID))
	refer(p.cfg.FCM.ServiceAccount, credential.CheckServiceAccount(p.cfg.FCM.Project, p.cfg.FCM.TokenURL))
	for _, c := range p.cfg.Credentials {
		refer(c.Key, keyCheck(&c))
		refer(c.Token, smtp.CheckToken)
	}
	return checks
}

func smtpCheck(auth string) func(string) error {
	if auth == "" {
		return smtp.CheckPassword
	}
	return smtp.CheckToken
}

func keyCheck(c *config.Credential) func(string) error {
	switch c.Source {
	case "apns":
		return credential.CheckP8(c.KeyID)
	case "service-account":
		return credential.CheckServiceAccount("", c.URL)
	}
	return nil
}

func all(checks []func(string) error) func(string) error {
	return func(value string) error {
		for _, check := range checks {
			if err := check(value); err != nil {
				return err
			}
		}
		return nil
	}
}

// make makes one of config.Credentials.
func (cs *credentials) make(c *config.Credential, setting string, check func(string) error) (*credential.Credential, error) {
	part := make(map[string]*credential.Credential)
	if c.Source == "value" {
		return cs.live(setting+"value", c.Name, c.Value, check)
	}
	for _, r := range c.References() {
		if r.Live == "" {
			continue
		}
		var check func(string) error
		switch r.Field {
		case "key":
			check = keyCheck(c)
		case "token":
			check = smtp.CheckToken
		}
		made, err := cs.live(setting+r.Field, c.Name+"."+r.Field, r.Live, check)
		if err != nil {
			return nil, err
		}
		part[r.Field] = made
	}
	var s credential.Source
	switch c.Source {
	case "client-credentials", "refresh-token":
		s = &credential.OAuth2{
			URL: c.URL, ClientID: c.ClientID, Secret: part["client_secret"], Refresh: part["refresh_token"], Scopes: c.Scopes, InBody: c.InBody, Client: cs.client,
			Safe: cs.safe, Name: c.Name,
		}
	case "service-account":
		s = &credential.JWTBearer{Key: part["key"], Scope: strings.Join(c.Scopes, " "), URL: c.URL, Client: cs.client}
	case "apns":
		s = &credential.APNs{Key: part["key"], KeyID: c.KeyID, TeamID: c.TeamID}
	case "vault":
		s = &credential.Vault{
			URL: c.URL, Token: part["token"], Namespace: c.Namespace, Mount: c.Mount, Path: c.Path, Field: cmp.Or(c.Field, "value"), Every: c.Every, Client: cs.client,
		}
	case "vault-lease":
		s = &credential.Lease{
			URL: c.URL, Token: part["token"], Namespace: c.Namespace, Path: c.Path, Field: cmp.Or(c.Field, "password"), Every: c.Every, Client: cs.client,
		}
	default:
		return nil, fmt.Errorf("%ssource: unknown source %q", setting, c.Source)
	}
	return cs.add(c.Name, s, check), nil
}

// live makes the credential that a setting gives, or finds the one that it names.
// What a file or the setting holds now has to pass check.
func (cs *credentials) live(setting, name string, l config.Live, check func(string) error) (*credential.Credential, error) {
	if other, ok := l.Credential(); ok {
		c := cs.named[other]
		if c == nil {
			return nil, fmt.Errorf("%s: there is no credential %q", setting, other)
		}
		return c, nil
	}
	s := credential.Fixed("the setting "+setting, l.Value())
	if path, ok := l.File(); ok {
		s = &credential.File{Path: path, Rules: cs.rules()}
	}
	m, err := s.Fetch(context.Background())
	if err == nil && check != nil {
		err = check(m.Value.Reveal())
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", setting, err)
	}
	return cs.add(name, s, check), nil
}

func (cs *credentials) rules() credential.FileRules {
	return credential.FileRules{Root: cs.p.cfg.Secrets.Root, WorldReadable: cs.p.cfg.Secrets.WorldReadable}
}

func (cs *credentials) add(name string, s credential.Source, check func(string) error) *credential.Credential {
	c := credential.New(credential.Config{Name: name, Source: s, Check: check, Safe: cs.safe, Logger: cs.p.log})
	cs.all = append(cs.all, c)
	return c
}

// need notes that a route signs in, if its provider has anybody to sign in to.
func (cs *credentials) need(pr delivery.Provider) {
	p, ok := pr.(interface {
		delivery.Authenticator
		Credential() *credential.Credential // nil: signs in nowhere
	})
	if !ok || p.Credential() == nil {
		return
	}
	p.Credential().ProveBy(p.Authenticate)
	cs.uses = append(cs.uses, signIn{pr.Name(), p.Credential(), p})
}

// close ends them, those made of others first.
func (cs *credentials) close() {
	if cs == nil {
		return
	}
	for i := len(cs.all) - 1; i >= 0; i-- {
		cs.all[i].Close()
	}
	cs.client.CloseIdleConnections()
}

var _ httpapi.Credentials = (*credentials)(nil)

// List implements httpapi.Credentials.
func (cs *credentials) List() []credential.Status {
	if cs == nil {
		return nil
	}
	list := make([]credential.Status, len(cs.all))
	for i, c := range cs.all {
		list[i] = c.Status()
	}
	return list
}

// testLimit is how long a service has to let us in.
const testLimit = 15 * time.Second

// Test implements httpapi.Credentials: it signs in wherever the credential is
// used, and hands nothing over.
func (cs *credentials) Test(ctx context.Context, name string) (tests []httpapi.CredentialTest, found bool) {
	if cs == nil {
		return nil, false
	}
	ctx, cancel := context.WithTimeout(ctx, testLimit)
	defer cancel()
	for _, u := range cs.uses {
		if u.credential.Name() == name {
			tests = append(tests, httpapi.CredentialTest{Route: u.route, Err: u.provider.Authenticate(ctx)})
		}
	}
	if tests != nil {
		return tests, true
	}
	for _, c := range cs.all {
		if c.Name() == name {
			_, err := c.Use(ctx)
			return []httpapi.CredentialTest{{Err: err}}, true
		}
	}
	return nil, false
}

const (
	proveFirst = 500 * time.Millisecond
	proveLast  = 5 * time.Second
)

// prove signs in on the route until that succeeds once.
func (r *readiness) prove(ctx context.Context, u signIn) {
	pause := proveFirst
	for {
		err := r.try(ctx, u)
		if err == nil || ctx.Err() != nil {
			return
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		pause = min(2*pause, proveLast)
	}
}

// try signs in once.
func (r *readiness) try(ctx context.Context, u signIn) error {
	tctx, cancel := context.WithTimeout(ctx, testLimit)
	defer cancel()
	err := u.provider.Authenticate(tctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, delivery.ErrUnreachable) && !usable(u.credential) {
		err = fmt.Errorf("credential %s: %w", u.credential.Name(), credential.ErrNone)
	}
	r.set(u.route, err)
	return err
}

// usable says whether the credential has what may work, as far as is known.
func usable(c *credential.Credential) bool {
	h := c.Status().Health
	return h != credential.Missing && h != credential.Refused
}
