package credential

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

// OAuth2 is a Source of access tokens by client credentials (RFC 6749 §4.4) or,
// with Refresh, by refresh token (§6). URL and ClientID are required.
//
// A refresh token that the server replaces (RFC 6749 §6) is in Safe before
// anything comes of the answer that brought it. Without a Safe it is kept in
// memory: after a restart the configured one has to do.
type OAuth2 struct {
	URL      string
	ClientID string
	Secret   *Credential // the client's; nil: it has none
	Refresh  *Credential // nil: client credentials
	Scopes   []string
	// InBody sends the client's id and secret in the form, instead of by HTTP
	// Basic.
	InBody bool
	Client *http.Client // it follows no redirects, whatever its own policy
	Safe   *Safe        // nil: none
	Name   string       // of the credential, in Safe
	Now    func() time.Time

	mu       sync.Mutex
	replaced replaced
}

var _ Source = (*OAuth2)(nil)

func (o *OAuth2) follows() (keys []*Credential) {
	for _, k := range []*Credential{o.Secret, o.Refresh} {
		if k != nil {
			keys = append(keys, k)
		}
	}
	return keys
}

func (o *OAuth2) String() string {
	host := "?"
	if u, err := url.Parse(o.URL); err == nil {
		host = u.Host
	}
	if o.Refresh != nil {
		return "OAuth 2 refresh token at " + host
	}
	return "OAuth 2 client credentials at " + host
}

// GoString is String, so that %#v shows no token.
func (o *OAuth2) GoString() string { return o.String() }

func (o *OAuth2) identity() string {
	return fmt.Sprintf("%q %q %q %t", o.URL, o.ClientID, o.Scopes, o.Refresh != nil)
}

// Fetch gets a new token. A secret or refresh token that the server refuses
// gives way to the next that there is, once.
func (o *OAuth2) Fetch(ctx context.Context) (Material, error) {
	m, refused, err := o.once(ctx)
	if refused {
		m, _, err = o.once(ctx)
	}
	return m, err
}

func (o *OAuth2) once(ctx context.Context) (m Material, refused bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var secret, refresh Use
	if o.Secret != nil {
		if secret, err = o.Secret.Use(ctx); err != nil {
			return m, false, err
		}
	}
	if o.Refresh != nil {
		if refresh, err = o.Refresh.Use(ctx); err != nil {
			return m, false, err
		}
	}
	value := refresh.Value()
	if o.Refresh != nil {
		done, err := o.replaced.begin(ctx, o)
		if err != nil {
			return m, false, err
		}
		defer done()
		value = o.replaced.instead(value)
	}
	now := time.Now
	if o.Now != nil {
		now = o.Now
	}
	asked := now()
	tok, err := o.ask(ctx, secret.Value(), value)
	if err != nil {
		err = exchangeError(err, o.ClientID, secret.Value(), value)
		var e *ExchangeError
		if !errors.As(err, &e) || !e.aboutUs() {
			return m, false, err
		}
		if o.Refresh == nil || e.Code != "invalid_grant" {
			secret.Rejected(e.Error())
			return m, true, err
		}
		o.replaced.refused(o, refresh.Value(), value)
		if value == refresh.Value() {
			refresh.Rejected(e.Error())
		}
		return m, true, err
	}
	secret.Accepted()
	refresh.Accepted()
	if o.Refresh != nil && tok.RefreshToken != "" && tok.RefreshToken != value {
		o.replaced.put(o, refresh.Value(), tok.RefreshToken)
	}
	m, err = newToken(tok.AccessToken, tok.Type(), float64(tok.ExpiresIn), asked)
	if err == nil && m.Expires.IsZero() {
		m.Expires = readJWT(tok.AccessToken).Expires
	}
	return m, false, err
}

func (o *OAuth2) ask(ctx context.Context, secret, refresh string) (*oauth2.Token, error) {
	ctx = context.WithValue(ctx, oauth2.HTTPClient, noRedirects(o.Client))
	style := oauth2.AuthStyleInHeader
	if o.InBody || secret == "" {
		style = oauth2.AuthStyleInParams
	}
	if o.Refresh == nil {
		c := clientcredentials.Config{ClientID: o.ClientID, ClientSecret: secret, TokenURL: o.URL, Scopes: o.Scopes, AuthStyle: style}
		return c.Token(ctx)
	}
	c := oauth2.Config{ClientID: o.ClientID, ClientSecret: secret, Endpoint: oauth2.Endpoint{TokenURL: o.URL, AuthStyle: style}}
	return c.TokenSource(ctx, &oauth2.Token{RefreshToken: refresh}).Token()
}

// exchangeError is err without what x/oauth2 puts into it: the whole answer. Some
// servers repeat what they were sent in the rest, so the client's secret and the
// refresh token are hidden as they are, as they stand in a form, and in HTTP Basic
// (RFC 6749 §2.3.1).
func exchangeError(err error, client, secret, refresh string) error {
	basic := func(user, password string) string {
		if password == "" {
			return ""
		}
		return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	}
	hide := func(s string) string {
		for _, shown := range []string{
			basic(url.QueryEscape(client), url.QueryEscape(secret)), basic(client, secret),
			url.QueryEscape(secret), url.QueryEscape(refresh), secret, refresh,
		} {
			if shown != "" {
				s = strings.ReplaceAll(s, shown, "[secret]")
			}
		}
		return clean(s, "")
	}
	var retrieve *oauth2.RetrieveError
	var transport *url.Error
	switch {
	case errors.As(err, &retrieve) && retrieve.Response != nil:
		return &ExchangeError{Status: retrieve.Response.StatusCode, Code: hide(retrieve.ErrorCode), Description: hide(retrieve.ErrorDescription)}
	case errors.As(err, &transport):
		return transport
	}
	return errors.New("token endpoint's answer can't be used")
}
