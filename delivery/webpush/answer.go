package webpush

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

// quotaPause is how long to wait after a 429 without Retry-After.
const quotaPause = time.Minute

// notMessage is what the body of a 400 names where our VAPID key or token is at
// fault, or the connection, and not the message.
//
//   - Google's: "Common Issues and Reporting Bugs", On Chrome and FCM
//     (https://web.dev/articles/push-notifications-common-issues-and-reporting-bugs)
//   - Apple's reasons: "Sending web push notifications in web apps and browsers"
//     (https://developer.apple.com/documentation/usernotifications/sending-web-push-notifications-in-web-apps-and-browsers)
var notMessage = []string{
	"UnauthorizedRegistration",
	"VapidPkHashMismatch", "BadVapidPublicKey", "BadJwtToken", "BadAuthorizationHeader", "IdleTimeout",
}

// judge says what an answer means, as the package comment's table has it.
// secrets must not be shown: an endpoint's path is what lets anyone push to it.
func judge(a overhttp.Answer, secrets ...string) message.Result {
	res := message.Result{Outcome: outcomeOf(a.Status), Code: strconv.Itoa(a.Status), Reply: a.Text, RetryAfter: a.RetryAfter}
	if res.Outcome == message.Sent && !a.Whole {
		res.Outcome = message.Unknown
	}
	switch a.Status {
	case http.StatusBadRequest:
		named := func(name string) bool { return strings.Contains(string(a.Body), name) }
		if !a.Whole || slices.ContainsFunc(notMessage, named) {
			res.Outcome = message.Deferred
		}
	case http.StatusCreated, http.StatusAccepted:
		res.Reference = overhttp.Line(a.Header.Get("Location"), secrets...)
	case http.StatusNotFound, http.StatusGone:
		res.Code = message.RecipientGone
	case http.StatusTooManyRequests:
		if res.RetryAfter == 0 {
			res.RetryAfter = quotaPause
		}
	}
	if a.Whole && len(a.Body) > 0 && res.Outcome != message.Sent {
		res.Reply += ": " + string(a.Body)
	}
	res.Reply = overhttp.Line(res.Reply, secrets...)
	return res
}

// outcomeOf follows the table in the package comment.
func outcomeOf(status int) message.Outcome {
	switch status {
	case http.StatusCreated, http.StatusAccepted:
		return message.Sent
	case http.StatusBadRequest, http.StatusNotFound, http.StatusGone, http.StatusRequestEntityTooLarge:
		return message.Rejected
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests,
		http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return message.Deferred
	}
	return message.Unknown
}
