// Package resend hands email to Resend, or to any service with its API:
// https://resend.com/docs/api-reference/emails/send-email
//
// Each message is one POST /emails to its one recipient: the API has no
// envelope beside the header, so a recipient sees nobody else's address. The
// message's id is the tag stormpost_id, and the Idempotency-Key.
//
//	answer (https://resend.com/docs/api-reference/errors)  outcome
//	200 with an id                                  Sent
//	400 validation_error, invalid_idempotency_key   Rejected
//	400 validation_error "API key is invalid",
//	401, 403 invalid_api_key                        another key and once more, then Returned
//	403                                             Deferred: our domain, not the message
//	404, 405                                        Deferred: a wrong address
//	409 invalid_idempotent_request                  Unknown: the key came with other bytes
//	409 concurrent_idempotent_requests              Unknown: the first is still under way
//	413                                             Rejected
//	422 validation_error, invalid_attachment,
//	invalid_from_address, invalid_parameter,
//	missing_required_field                          Rejected
//	422                                             Deferred: our account
//	429 daily_quota_exceeded, monthly_…             Deferred, an hour
//	429                                             Deferred, with retry-after (default a second)
//	451 security_error                              Deferred: for people to look at
//	anything else                                   Unknown: 500 application_error and
//	                                                internal_server_error, other statuses, an
//	                                                answer that is cut off, none at all
//
// Authenticate is GET /domains, which a key that may only send is refused with
// restricted_api_key: that proves it, too.
//
// # Repeats
//
// A request with the same key and body within 24 h gets the first answer again
// and sends nothing: https://resend.com/docs/dashboard/emails/idempotency-keys
// The body is a function of the message alone, so that every attempt's is the
// same. A 409 leaves a message in doubt, since only an attempt before this one
// can have caused it.
package resend
