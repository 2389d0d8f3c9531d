//go:build !unix

package smtp

import "net"

// socketQuiet can't tell here; a dead connection shows at the next command.
func socketQuiet(net.Conn) bool { return true }
