// Package apns hands pushes to Apple Push Notification service over HTTP/2, with
// provider tokens:
// https://developer.apple.com/documentation/usernotifications/sending-notification-requests-to-apns
//
//	no token or connection         error of Reserve, no message touched
//	last fails                     Returned
//	no byte of the body had left   Deferred, or Returned when ctx ended
//	REFUSED_STREAM, GOAWAY         Deferred: not processed
//	200                            Sent
//	400 BadTopic, MissingTopic, TopicDisallowed, BadCertificate…,
//	    IdleTimeout                Deferred: our settings, or the connection
//	400 with another reason        Rejected: the message or its device token
//	403 …ProviderToken, …KeyIdInToken  another token on another connection, once,
//	                               then Returned; UnrelatedKeyIdInToken: the same
//	                               token on another connection
//	403                            Deferred: our key, not the message
//	404, 405                       Deferred: a wrong address, not the message
//	410 Unregistered, ExpiredToken Rejected, recipient_gone
//	413 PayloadTooLarge            Rejected
//	429                            Deferred, with Retry-After
//	503 ServiceUnavailable, Shutdown   Deferred, by 15 minutes, as Apple asks
//	anything else                  Unknown: 500, other statuses, errors without a
//	                               reason, a broken connection, no answer
//
// The reasons are those of
// https://developer.apple.com/documentation/usernotifications/handling-notification-responses-from-apns
//
// How one request is made once, and what proves it, is package overhttp's. APNs
// ends connections by GOAWAY, at any time: what it says was not processed is tried
// on another connection, and is Deferred if that fails, too; anything else after
// the first byte is Unknown.
//
// # Repeats
//
// apns-id names the message and is the same at every attempt, as is data member
// stormpost_id. Apple documents no deduplication by either. apns-collapse-id, the
// message's id unless it has a collapse key, makes a repeat replace the
// notification that is shown, which may alert again: so a repeat is a doubt all
// the same.
package apns
