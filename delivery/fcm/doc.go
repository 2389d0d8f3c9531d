// Package fcm hands pushes to Firebase Cloud Messaging by its HTTP v1 API:
// https://firebase.google.com/docs/reference/fcm/rest/v1/projects.messages/send
//
// FCM has no idempotency key and no look-up, and has delivered messages that it
// answered 503 for. So one message is one request on one connection, which
// nothing repeats by itself, and only a clear answer counts:
//
//	no token or connection         error of Reserve, no message touched
//	last fails                     Returned
//	no byte of the body had left   Deferred, or Returned when ctx ended
//	REFUSED_STREAM                 Deferred: not processed (RFC 9113 §8.7)
//	GOAWAY below the stream        once more, then Deferred: not processed (RFC 9113 §6.8)
//	200 with a name                Sent
//	400 INVALID_ARGUMENT           Rejected
//	401                            new token and once more, then Returned
//	401 THIRD_PARTY_AUTH_ERROR     Deferred: the project's APNs or Web Push key
//	403 SENDER_ID_MISMATCH         Rejected
//	403                            Deferred: our permissions, not the message
//	404 UNREGISTERED               Rejected, recipient_gone
//	404                            Deferred: a wrong address, not the message
//	413                            Rejected
//	429                            Deferred, with Retry-After (default a minute)
//	anything else                  Unknown: 500, 503, other statuses, a 200 that
//	                               is cut off, a broken connection, no answer
//
// The codes are those of https://firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode.
//
// How one request is made once, and what proves it, is package overhttp's.
//
// # A repeat that an app can drop
//
// Each push carries its message's id as data member stormpost_id. It is the
// same at every attempt, so an app that remembers the last few can drop the
// repeat that a decision to resend a doubt may cause.
package fcm
