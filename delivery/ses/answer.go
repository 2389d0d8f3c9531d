package ses

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

// ratePause is the wait after a refusal for rate: limits are by the second.
const ratePause = time.Second

// ours are the types of 400 that speak of the account or the request's frame
// rather than of the message. "Common Errors" had AccessDeniedException and
// InvalidAction as such (https://docs.aws.amazon.com/ses/latest/APIReference/CommonErrors.html).
var ours = map[string]bool{
	"AccountSuspendedException": true, "LimitExceededException": true, "MailFromDomainNotVerifiedException": true,
	"SendingPausedException": true, "NotAuthorized": true, "RequestExpired": true, "OptInRequired": true, "IncompleteSignature": true,
	"Throttling": true, "ThrottlingException": true, "TooManyRequestsException": true, "AccessDeniedException": true, "InvalidAction": true,
}

// credentials are the types of 403 after which other credentials may do.
var credentials = map[string]bool{
	"ExpiredToken": true, "ExpiredTokenException": true, "InvalidClientTokenId": true, "InvalidSignatureException": true,
	"MissingAuthenticationToken": true, "MissingAuthenticationTokenException": true, "SignatureDoesNotMatch": true, "UnrecognizedClientException": true,
}

// judge follows the table in the package comment.
func judge(a overhttp.Answer, hide []string) (message.Result, overhttp.Standing) {
	var b struct {
		MessageID string `json:"MessageId"`
		Message   string `json:"message"` // or Message
	}
	if json.Unmarshal(a.Body, &b) != nil {
		b.MessageID, b.Message = "", ""
	}
	kind := errorType(a.Header)
	res := a.Result(kind, b.Message, hide...)
	res.Outcome = outcome(a.Status, kind, b.MessageID, b.Message)
	if res.Outcome == message.Rejected && !a.Whole {
		res.Outcome = message.Deferred // the text that was cut off could say that it isn't for ever
	}
	if res.Outcome == message.Sent {
		res.Reference = overhttp.Line(b.MessageID)
	}
	throttled := a.Status == http.StatusTooManyRequests || strings.HasPrefix(kind, "Throttling")
	if res.Outcome == message.Deferred && throttled && res.RetryAfter == 0 {
		res.RetryAfter = ratePause
	}
	switch {
	case (a.Status == http.StatusUnauthorized || a.Status == http.StatusForbidden) && credentials[kind]:
		return res, overhttp.Refused
	case res.Outcome == message.Sent, kind == "MessageRejected", kind == "BadRequestException":
		return res, overhttp.LetIn
	}
	return res, overhttp.Unsaid
}

// admits judges GetAccount. Who may send may not be allowed that; but only one
// whose signature is good is told so.
// https://docs.aws.amazon.com/ses/latest/APIReference-V2/API_GetAccount.html
func admits(a overhttp.Answer) overhttp.Standing {
	kind := errorType(a.Header)
	denied := a.Status == http.StatusUnauthorized || a.Status == http.StatusForbidden
	switch {
	case a.Status == http.StatusOK, (denied || a.Status == http.StatusBadRequest) && kind == "AccessDeniedException":
		return overhttp.LetIn
	case denied && credentials[kind]:
		return overhttp.Refused
	}
	return overhttp.Unsaid
}

// errorType is an error's name. The header may hold its namespace, and a URL:
// "aws.protocoltests.restjson#FooError:http://…".
func errorType(h http.Header) string {
	kind := h.Get("x-amzn-ErrorType")
	kind, _, _ = strings.Cut(kind, ":")
	return kind[strings.LastIndexByte(kind, '#')+1:]
}

func outcome(status int, kind, id, text string) message.Outcome {
	switch status {
	case http.StatusOK:
		if id != "" {
			return message.Sent
		}
	case http.StatusBadRequest:
		switch {
		case ours[kind]:
			return message.Deferred
		case kind == "MessageRejected" && strings.Contains(text, "not verified"):
			// Of the sender's domain, or of the recipient of an account that is
			// still in the sandbox: an account's set-up must not end messages.
			return message.Deferred
		case kind == "BadRequestException", kind == "ValidationError", kind == "ValidationException", kind == "MessageRejected":
			return message.Rejected
		}
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusTooManyRequests:
		return message.Deferred
	case http.StatusRequestEntityTooLarge:
		return message.Rejected
	}
	return message.Unknown
}
