package overhttp

import (
	"errors"
	"net"
	"net/netip"
	"net/url"
	"strings"
)

// CheckURL reads a service's URL: https anywhere, http to loopback addresses
// alone. problem is empty if it is good, and doesn't repeat the URL, which may
// hold a password.
func CheckURL(text string) (u *url.URL, problem string) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Hostname() == "" || u.Opaque != "":
		return nil, "is not an http or https URL"
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, "has a user, query or fragment"
	case u.Scheme == "https":
		return u, ""
	case u.Scheme != "http":
		return nil, "is not an http or https URL"
	case !isLoopback(u.Hostname()):
		return nil, "is plain http to another host, which would show the credential to anyone on the way"
	}
	return u, ""
}

// Join is the URL of a path under base, whose own path may be empty.
func Join(base *url.URL, elem ...string) *url.URL {
	u := *base
	if u.Path == "" {
		u.Path = "/" // or JoinPath makes a relative one
	}
	return u.JoinPath(elem...)
}

func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// hostPort is where to connect for u.
func hostPort(u *url.URL) string {
	port := u.Port()
	switch {
	case port != "":
	case u.Scheme == "https":
		port = "443"
	default:
		port = "80"
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// CheckKey is a credential's Check for an API key that goes into a header.
func CheckKey(key string) error {
	switch {
	case key == "":
		return errors.New("is required")
	case len(key) > 4096 || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }):
		return errors.New("is not a key: want at most 4096 printable ASCII characters without spaces")
	}
	return nil
}
