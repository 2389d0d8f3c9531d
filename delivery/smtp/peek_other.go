//go:build !unix

package smtp

import "net"

// peekSocket can't tell here; a dead connection shows at the next command.
func peekSocket(net.Conn) peekState { return quiet }
