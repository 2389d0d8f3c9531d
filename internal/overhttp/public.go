package overhttp

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
)

// ErrNotPublic is what a connection to an address fails with that is not on the
// public Internet.
var ErrNotPublic = errors.New("not a public address")

// special is what IANA's special-purpose registries keep for other uses than
// the public Internet, beyond what netip knows by itself:
// https://www.iana.org/assignments/iana-ipv4-special-registry
// https://www.iana.org/assignments/iana-ipv6-special-registry
// Ranges that stand for an IPv4 address are among them: what is behind a
// translator may be private.
var special = prefixes(
	"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24",
	"203.0.113.0/24", "240.0.0.0/4",
	"::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fec0::/10",
)

func prefixes(texts ...string) []netip.Prefix {
	all := make([]netip.Prefix, len(texts))
	for i, s := range texts {
		all[i] = netip.MustParsePrefix(s)
	}
	return all
}

// Public says whether ip is an address of the public Internet.
func Public(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	if !ip.IsGlobalUnicast() || ip.IsPrivate() {
		return false
	}
	for _, p := range special {
		if p.Contains(ip) {
			return false
		}
	}
	return true
}

// OnlyPublic is a Config.Control that lets no connection be made but to public
// addresses. It sees what a name resolved to at that very moment, so that no
// name can mean one address when it is checked and another when it is used.
func OnlyPublic(_, address string, _ syscall.RawConn) error {
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w: %s", ErrNotPublic, address)
	}
	if !Public(a.Addr()) {
		return fmt.Errorf("%w: %s", ErrNotPublic, a.Addr())
	}
	return nil
}
