// Package postmark hands email to Postmark, or to any service with its API:
// https://postmarkapp.com/developer/api/email-api
//
// Each message is one POST /email to its one recipient: the API has no envelope
// beside the header, so a recipient sees nobody else's address. The message's
// id is the metadata stormpost_id, by which the messages API finds it
// (https://postmarkapp.com/developer/api/messages-api), and its Message-ID is
// kept.
//
//	answer                                           outcome
//	200 with ErrorCode 0 and a MessageID             Sent
//	401                                              another token and once more, then Returned
//	404, 415                                         Deferred: a wrong address
//	413                                              Rejected
//	422, ErrorCode 300 invalid email                 Rejected; but Deferred if it says
//	                                                 that the sender is not verified
//	     402, 403 invalid JSON                       Rejected
//	     406 inactive recipient                      Rejected, recipient_gone
//	     411 forbidden attachment type               Rejected
//	422, others: 400 and 401 sender signature,       Deferred: our account
//	     405 and 413 may not send, 409 JSON required,
//	     412 not approved, 1235 no such stream, and
//	     what is not known
//	429                                              Deferred (default a second)
//	503, ErrorCode 100 maintenance                   Deferred
//	anything else                                    Unknown: 500, other statuses, an
//	                                                 answer that is cut off, none at all
//
// The statuses and codes are those of
// https://postmarkapp.com/developer/api/overview#response-codes and #error-codes.
// Postmark has no idempotency key.
//
// Authenticate is GET /server.
package postmark
