// Package smtp hands email to one SMTP relay (RFC 5321) over pooled
// connections.
//
// A hand-over goes through these steps. What can happen at each of them decides
// the outcome, and nothing else does:
//
//	step            a 4xx, 421, cut, timeout or garbage   a 5xx
//	connect … AUTH  error of Reserve, no message touched  the same
//	MAIL RCPT DATA  Deferred                              Rejected
//	body            Deferred                              Rejected
//	claim's end     Deferred, whichever of these steps it comes in
//	last fails      Returned: the dot is never sent
//	final write     from its first byte on: Unknown, unless a whole, well-formed
//	                reply came: 2xx Sent, 4xx Deferred, 5xx Rejected. A 4xx about
//	                a lost or closing connection is no answer: Unknown
//
// The final write is the one that holds the dot ending the message. A message
// of up to 16 KiB is that one write. Of a longer one everything but its end is
// written before, so that last is asked as late as possible.
//
// Signing in takes its password or token from a credential.Credential, whose
// generation a 5xx to AUTH rejects; then there is one more try with what the
// credential has by then. A server that answers the envelope with 530 or 535
// has signed us out: the same hand-over is tried once more, newly signed in. If
// that can't be, it is Returned, which is no attempt. Refused so again, though the
// sign-in was good, it is Deferred: that may be about the message's sender, and
// another relay has its turn.
//
// A 5xx that speaks of us rather than of the message (no or wrong credentials,
// encryption required, bad sequence of commands) is Deferred: a relay that lost
// its configuration must not end the messages of that hour.
//
// Messages are composed from their content at each attempt: the Message-ID is a
// function of the message's id alone, Date is the time of the attempt.
package smtp
