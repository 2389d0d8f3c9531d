package devstack

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Ports handed out lie in [portLow, portHigh): above the well-known services
// and below 32768, where Linux begins to give out ephemeral ports (RFC 6335
// systems begin at 49152).
const (
	portLow  = 20000
	portHigh = 32000
)

// FreePort finds a loopback TCP port that nobody listens on now. Somebody else
// may take it before it is used; callers try again when that happens.
func FreePort() (int, error) {
	for range 100 {
		if port := portLow + rand.IntN(portHigh-portLow); portFree(port) {
			return port, nil
		}
	}
	return 0, fmt.Errorf("no free port found between %d and %d", portLow, portHigh)
}

func portFree(port int) bool {
	l, err := net.Listen("tcp", loopback(port))
	if err != nil {
		return false
	}
	l.Close()
	return true
}

func loopback(port int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}
