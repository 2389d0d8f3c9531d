// Package ses hands email to Amazon SES by its API v2:
// https://docs.aws.amazon.com/ses/latest/APIReference-V2/API_SendEmail.html
//
// Each message is one SendEmail of Content.Raw: the message that an SMTP relay
// would get, with its one recipient as Destination, so that the header may name
// others. Requests are signed with Signature Version 4 by aws-sdk-go-v2's
// signer; the rest of that SDK isn't used (decision 11). The message's id is
// the tag stormpost_id, for SES's events.
//
//	answer, by x-amzn-ErrorType                             outcome
//	200 with a MessageId                                    Sent
//	400 BadRequestException, ValidationError                Rejected
//	400 MessageRejected                                     Rejected; but Deferred if it says
//	                                                        that an address is not verified
//	400 AccountSuspendedException, LimitExceededException,
//	    MailFromDomainNotVerifiedException, NotAuthorized,
//	    SendingPausedException, RequestExpired, OptInRequired,
//	    IncompleteSignature, AccessDeniedException,
//	    InvalidAction, Throttling, ThrottlingException      Deferred: our account
//	400 of another type, or of none                         Unknown
//	401, 403 ExpiredToken, InvalidClientTokenId,            another key and once more, then
//	    InvalidSignature, SignatureDoesNotMatch,            Returned
//	    MissingAuthenticationToken, UnrecognizedClient
//	401, 403                                                Deferred: our permissions
//	404                                                     Deferred: our configuration set
//	413                                                     Rejected
//	429                                                     Deferred (default a second)
//	anything else                                           Unknown: 500 InternalFailure and
//	                                                        503 ServiceUnavailable, a 200 that is
//	                                                        cut off, no answer
//
// The types are those of SendEmail and of
// https://docs.aws.amazon.com/ses/latest/APIReference-V2/CommonErrors.html
// SES has no idempotency key, and finds no message by what we chose.
//
// Authenticate is GetAccount; AccessDeniedException proves the key, too.
package ses
