//go:build unix

package smtp

import (
	"errors"
	"net"
	"syscall"
)

func peekSocket(nc net.Conn) peekState {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return quiet
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return gone
	}
	state := quiet
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		switch {
		case n > 0:
			state = pending
		case err == nil:
			state = gone
		case !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EINTR):
			state = gone
		}
		return true
	})
	if err != nil {
		return gone
	}
	return state
}
