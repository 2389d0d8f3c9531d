package credential

import (
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// CheckURL reads the URL of a service that secrets are sent to: https anywhere,
// http to loopback addresses alone. Its error says what is wrong without
// repeating the URL, which may hold a password.
func CheckURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Hostname() == "" || u.Opaque != "":
		return nil, errors.New("is not an http or https URL")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("has a user, query or fragment")
	case u.Scheme == "https":
		return u, nil
	case u.Scheme != "http":
		return nil, errors.New("is not an http or https URL")
	case !isLoopback(u.Hostname()):
		return nil, errors.New("is plain http to another host, which would show secrets to anyone on the way")
	}
	return u, nil
}

func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// noRedirects is client, but following no redirects: they would carry secrets
// along.
func noRedirects(client *http.Client) *http.Client {
	c := http.Client{}
	if client != nil {
		c = *client
	}
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &c
}
