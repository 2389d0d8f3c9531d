package smtp

import (
	"strconv"
	"strings"
)

// extensions is what a server offers in its reply to EHLO (RFC 5321 §4.1.1.1).
type extensions struct {
	startTLS   bool  // RFC 3207
	pipelining bool  // RFC 2920
	eightBit   bool  // RFC 6152
	utf8       bool  // RFC 6531
	sizes      bool  // RFC 1870
	maxSize    int64 // bytes, 0: none stated
	plain      bool  // AUTH mechanisms, RFC 4954
	login      bool
	xoauth2    bool
	// oauthBearer is RFC 7628.
	oauthBearer bool
}

// parseExtensions reads the lines of a reply to EHLO; the first is a greeting.
func parseExtensions(lines []string) (e extensions) {
	for _, line := range lines[min(1, len(lines)):] {
		words := strings.Fields(strings.ToUpper(line))
		if len(words) == 0 {
			continue
		}
		// "AUTH=" is what some old servers say beside, or instead of, "AUTH ".
		if rest, ok := strings.CutPrefix(words[0], "AUTH="); ok {
			words = append([]string{"AUTH", rest}, words[1:]...)
		}
		switch words[0] {
		case "STARTTLS":
			e.startTLS = true
		case "PIPELINING":
			e.pipelining = true
		case "8BITMIME":
			e.eightBit = true
		case "SMTPUTF8":
			e.utf8 = true
		case "SIZE":
			e.sizes = true
			if len(words) > 1 {
				if n, err := strconv.ParseInt(words[1], 10, 64); err == nil && n > 0 {
					e.maxSize = n
				}
			}
		case "AUTH":
			for _, w := range words[1:] {
				e.plain = e.plain || w == "PLAIN"
				e.login = e.login || w == "LOGIN"
				e.xoauth2 = e.xoauth2 || w == "XOAUTH2"
				e.oauthBearer = e.oauthBearer || w == "OAUTHBEARER"
			}
		}
	}
	return e
}
