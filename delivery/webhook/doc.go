// Package webhook hands messages to a receiver of one's own, by POST, signed as
// Standard Webhooks has it:
// https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
//
// The body is {"type":"message.deliver","data":{…}} with the message's id,
// channel, class, recipient, expiry and content; webhook-id is the message's id.
// Both are the same at every attempt, so that a receiver can drop a repeat by
// its webhook-id, as the specification asks of it. If it does, and for how long
// it remembers, Config.RepeatWindow says.
//
//	answer                             outcome
//	2xx                                Sent
//	301, 302, 307, 308                 Deferred: not followed; the receiver has moved
//	400, 413, 422                      Rejected: this message, whatever comes later
//	401, 403, 404, 405, 410, 415       Deferred: our secret or URL, not the message;
//	                                   after 410, which is meant for all that come,
//	                                   the breaker stops them
//	425, 429                           Deferred, with Retry-After (default a second)
//	anything else                      Unknown: 303, 408, 409, 5xx, an answer whose
//	                                   body is cut off, none at all
//
// What an answer's body says is not read, but it must come whole, and have at
// most 64 KiB. A 5xx may come from what stands before the receiver, after the receiver took
// the message. One that wants to be asked again should answer 429.
//
// # Where it connects
//
// An operator names the URL, but whoever can change its DNS chooses the address.
// So each connect is judged by the address that the name resolved to, right
// before it is made: loopback, private, link-local (the clouds' metadata), shared
// and other special addresses are refused, also inside IPv6 addresses that embed
// one. No proxy is used and no redirect followed. Config.AllowPrivate lifts this.
//
// The Provider is no delivery.Authenticator: a receiver checks a signature when
// it gets a message, and has nobody to sign in to before.
package webhook
