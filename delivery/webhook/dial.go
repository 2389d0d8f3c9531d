package webhook

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

var errAddress = errors.New("the receiver's address is not a public one (see allow_private)")

// special are the ranges of no public service, beside those that netip knows
// (https://www.iana.org/assignments/iana-ipv4-special-registry and
// https://www.iana.org/assignments/iana-ipv6-special-registry).
var special = prefixes(
	"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
	"100::/64", "2001::/23", "2001:db8::/32", "3fff::/20", "5f00::/16", "fec0::/10",
)

// embedding are IPv6 ranges whose addresses carry an IPv4 address, from the
// given byte on: NAT64 (RFC 6052) and 6to4 (RFC 3056). What may be behind them
// depends on the network, so the embedded address must be public, too.
var embedding = []struct {
	prefix netip.Prefix
	at     int
}{
	{netip.MustParsePrefix("64:ff9b::/96"), 12}, {netip.MustParsePrefix("2002::/16"), 2}, {netip.MustParsePrefix("::/96"), 12},
}

func prefixes(all ...string) (list []netip.Prefix) {
	for _, p := range all {
		list = append(list, netip.MustParsePrefix(p))
	}
	return list
}

// public says whether a is an address of the public internet.
func public(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if !a.IsGlobalUnicast() || a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() {
		return false
	}
	for _, p := range special {
		if p.Contains(a) {
			return false
		}
	}
	if a.Is4() {
		return true
	}
	if netip.MustParsePrefix("64:ff9b:1::/48").Contains(a) { // NAT64 within one network (RFC 8215)
		return false
	}
	b := a.As16()
	for _, e := range embedding {
		if e.prefix.Contains(a) && !public(netip.AddrFrom4([4]byte(b[e.at:e.at+4]))) {
			return false
		}
	}
	return true
}

// publicOnly is net.Dialer's Control: address is the one about to be connected
// to, whatever name stood for it.
func publicOnly(_, address string, _ syscall.RawConn) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	a, err := netip.ParseAddr(host)
	if err != nil || !public(a) {
		return fmt.Errorf("%w: %s", errAddress, host)
	}
	return nil
}
