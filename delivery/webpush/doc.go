// Package webpush hands pushes to the push services of browsers: RFC 8030, with
// payloads encrypted by RFC 8291 (aes128gcm of RFC 8188) and VAPID (RFC 8292).
//
// Whose service it is, the subscription says; so each has a client of its own, is
// connected to over https alone, never on a private network unless that is
// allowed, and its redirects are not followed.
//
//	no connection                  Deferred: the message's place is the claim's,
//	                               since only then the service is known
//	it is no public address        Rejected; but Deferred where its name only resolves
//	                               to none: that may be our resolver's trouble
//	last fails                     Returned
//	no byte of the body had left   Deferred, or Returned when ctx ended
//	REFUSED_STREAM, GOAWAY         Deferred: not processed
//	201, 202                       Sent
//	400                            Rejected; but Deferred if it says that our VAPID
//	                               key or token is wrong, or is cut off
//	401, 403                       Deferred: our VAPID key, not the message
//	404, 410                       Rejected, recipient_gone (RFC 8030 §7.3)
//	413                            Rejected (§7.2)
//	429                            Deferred, with Retry-After (§8.4; default a minute)
//	301, 302, 307, 308             Deferred: not taken, and not followed
//	anything else                  Unknown: 5xx, other statuses, a broken
//	                               connection, no answer
//
// How one request is made once, and what proves it, is package overhttp's.
//
// # Repeats
//
// Each payload has its message's id as data member stormpost_id, the same at
// every attempt, so that a service worker can drop a repeat. A Topic makes the
// newer message replace the older one that is still undelivered (§5.4). The
// collapse key makes one. Messages without get none, as some services keep but a
// few topics a device: then an older message of another topic may be lost. With
// Config.ReplaceRepeats they get one of their own. A repeat that replaces is a
// doubt all the same: who has seen the first sees the second, too.
//
// The Provider is no delivery.Authenticator: a push service knows a VAPID key by
// the subscriptions made with it, and has nobody to sign in to without one.
package webpush
