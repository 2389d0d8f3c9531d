// Package sendgrid hands email to SendGrid, or to any service with its v3 API:
// https://www.twilio.com/docs/sendgrid/api-reference/mail-send/mail-send
//
// Each message is one POST /v3/mail/send with one personalization, for its one
// recipient: the API has no envelope beside the header, so a recipient sees
// nobody else's address. The message's id is the custom argument stormpost_id,
// which SendGrid's events carry, and its Message-ID.
//
//	answer                                     outcome
//	202                                        Sent
//	400 with an error                          Rejected
//	401                                        another key and once more, then Returned; but
//	                                           Deferred if it says that credits are used up
//	403                                        Deferred: our sender, or blocked for a while
//	404, 405, 406, 415                         Deferred: a wrong address
//	413                                        Rejected
//	429                                        Deferred, until x-ratelimit-reset (default a minute)
//	anything else                              Unknown: 200 (only checked, in the sandbox
//	                                           mode that is never asked for), 500, 503,
//	                                           an answer that is cut off, none at all
//
// The statuses are those of
// https://www.twilio.com/docs/sendgrid/api-reference/how-to-use-the-sendgrid-v3-api/responses
// and .../mail-send/errors. SendGrid has no idempotency key; its activity feed,
// by which a message could be looked up, is an extra and takes a few requests a
// minute, so no look-up is declared.
//
// Authenticate is GET /v3/scopes: a key without mail.send is refused.
package sendgrid
