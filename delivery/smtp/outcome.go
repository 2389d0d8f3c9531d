package smtp

import (
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// accepted is the result of a 2xx reply to the final dot.
func accepted(r reply) message.Result {
	return message.Result{Outcome: message.Sent, Code: strconv.Itoa(r.code), Reply: r.String(), Reference: reference(r)}
}

// refused is the result of a 4xx or 5xx reply.
func refused(r reply) message.Result {
	res := message.Result{
		Outcome: message.Deferred, Code: strconv.Itoa(r.code), Reply: r.String(),
		// 421 is the whole service's (RFC 5321 §3.8), 4.3.x the mail system's (RFC 3463 §3.4).
		Fault: r.code == 421 || aboutUs(r) || strings.HasPrefix(r.enhanced(), "4.3."),
	}
	switch {
	case r.class() == 5 && !aboutUs(r):
		res.Outcome = message.Rejected
	default:
		res.RetryAfter = retryAfter(r)
	}
	return res
}

// aboutUs says whether a 5xx reply speaks of this client or the whole server
// rather than of the message in hand.
func aboutUs(r reply) bool {
	switch r.code {
	case 503, // bad sequence of commands; also "AUTH first"
		521,           // the host takes no mail (RFC 7504)
		530, 534, 535, // authentication required, too weak, invalid (RFC 4954 §6)
		538: // encryption required
		return true
	}
	switch r.enhanced() {
	case "5.3.2", "5.3.5", // system takes no messages, is incorrectly configured (RFC 3463 §3.4)
		"5.7.8", "5.7.9", "5.7.11": // as 535, 534 and 538
		return true
	}
	return false
}

// aboutConnection says whether a 4xx reply to the final dot tells of a connection
// rather than of the message: of the server's own to the next one (RFC 3463 §3.5,
// X.4.0 and X.4.2), or of this one, that is being closed. A server that keeps no
// messages itself, like Dovecot's submission service, says so whatever the next
// one did with the message, which may have been to take it.
func aboutConnection(r reply) bool {
	switch r.enhanced() {
	case "4.4.0", "4.4.2":
		return true
	case "4.3.2":
		return r.code == 421
	}
	return false
}

// gone are the codes with which a server refuses a recipient that will never be
// there: unknown, moved, disabled (RFC 3463 §3.2, §3.3), of a domain that takes no
// mail (RFC 7505). Without one, a 550 may as well be policy.
var gone = map[string]bool{"5.1.1": true, "5.1.6": true, "5.1.10": true, "5.2.1": true}

// signedOut says whether the server wants to be signed in to, as if nobody had: a
// token may have ended, or been taken back.
func signedOut(r reply) bool { return r.code == 530 || r.code == 535 || r.enhanced() == "5.7.8" }

// retryIn matches what greylisting servers say: "try again in 300 seconds",
// "retry after 5 minutes", "for 60s".
var retryIn = regexp.MustCompile(`(?i)\b(?:in|after|for) (\d{1,6}) ?(s|sec|secs|seconds?|m|min|mins|minutes?|h|hours?)\b`)

const maxRetryAfter = 24 * time.Hour

// retryAfter is how long a reply asks to wait, or zero. SMTP has no field for
// it, so this is read from the text, and bounded.
func retryAfter(r reply) time.Duration {
	m := retryIn.FindStringSubmatch(strings.Join(r.lines, " "))
	if m == nil {
		return 0
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		return 0
	}
	unit := time.Second
	switch m[2][0] {
	case 'm', 'M':
		unit = time.Minute
	case 'h', 'H':
		unit = time.Hour
	}
	return min(time.Duration(min(n, math.MaxInt32))*unit, maxRetryAfter)
}

// reference finds the server's own name for the message: Postfix says "queued
// as ID", Exim "id=ID", Amazon SES "Ok ID".
func reference(r reply) string {
	const longest = 200
	text := strings.Join(r.lines, " ")
	id := ""
	if _, after, ok := strings.Cut(text, "queued as "); ok {
		id = after
	} else if _, after, ok := strings.Cut(text, "id="); ok {
		id = after
	} else if after, ok := strings.CutPrefix(text, "Ok "); ok && len(after) >= 20 && !strings.Contains(after, " ") {
		id = after
	}
	id, _, _ = strings.Cut(id, " ")
	id = printable(strings.TrimRight(id, ".,;"))
	if len(id) > longest {
		return ""
	}
	return id
}
