package apns

import (
	"encoding/json"
	"net/http"
	"slices"

	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

// outcomes has every documented reason, by status.
var outcomes = map[int]map[string]message.Outcome{
	http.StatusBadRequest: {
		"BadCollapseId": message.Rejected, "BadDeviceToken": message.Rejected, "BadExpirationDate": message.Rejected,
		"BadMessageId": message.Rejected, "BadPriority": message.Rejected, "DeviceTokenNotForTopic": message.Rejected,
		"DuplicateHeaders": message.Rejected, "InvalidPushType": message.Rejected, "MissingDeviceToken": message.Rejected,
		"PayloadEmpty": message.Rejected,
		// Our settings, and the connection.
		"BadTopic": message.Deferred, "MissingTopic": message.Deferred, "TopicDisallowed": message.Deferred, "IdleTimeout": message.Deferred,
		"BadCertificate": message.Deferred, "BadCertificateEnvironment": message.Deferred,
	},
	http.StatusForbidden: {
		"BadCertificate": message.Deferred, "BadCertificateEnvironment": message.Deferred, "ExpiredProviderToken": message.Deferred,
		"Forbidden": message.Deferred, "InvalidProviderToken": message.Deferred, "MissingProviderToken": message.Deferred,
		"UnrelatedKeyIdInToken": message.Deferred, "BadEnvironmentKeyIdInToken": message.Deferred,
	},
	http.StatusNotFound:         {"BadPath": message.Deferred},
	http.StatusMethodNotAllowed: {"MethodNotAllowed": message.Deferred},
	http.StatusGone:             {"ExpiredToken": message.Rejected, "Unregistered": message.Rejected},
	http.StatusRequestEntityTooLarge: {
		"PayloadTooLarge": message.Rejected,
	},
	http.StatusTooManyRequests:     {"TooManyProviderTokenUpdates": message.Deferred, "TooManyRequests": message.Deferred},
	http.StatusInternalServerError: {"InternalServerError": message.Unknown},
	http.StatusServiceUnavailable:  {"ServiceUnavailable": message.Deferred, "Shutdown": message.Deferred},
}

// unrelatedKey is the reason for a token that is of another key than those that
// its connection began with: it is good on another one
// (https://developer.apple.com/documentation/usernotifications/establishing-a-token-based-connection-to-apns).
const unrelatedKey = "UnrelatedKeyIdInToken"

// tokenReasons are those of a 403 that are about the provider token.
var tokenReasons = []string{
	"ExpiredProviderToken", "InvalidProviderToken", "MissingProviderToken", unrelatedKey, "BadEnvironmentKeyIdInToken",
}

// deviceReasons are those of a 400 that only who was let in is told.
var deviceReasons = []string{"BadDeviceToken", "DeviceTokenNotForTopic"}

// letIn says whether the answer is one of those that APNs gives only to whom it
// has let in. Who is busy or broken has not looked at the provider token.
func letIn(a overhttp.Answer, res message.Result) bool {
	return res.Outcome == message.Sent || res.Code == message.RecipientGone ||
		a.Status == http.StatusBadRequest && slices.Contains(deviceReasons, res.Code)
}

// judge says what an answer means, as the package comment's table has it;
// refused, that the provider token was.
func judge(a overhttp.Answer, secrets ...string) (res message.Result, refused bool) {
	var b struct {
		Reason string `json:"reason"`
	}
	if json.Unmarshal(a.Body, &b) != nil {
		b.Reason = ""
	}
	res = a.Result(b.Reason, b.Reason, secrets...)
	switch a.Status {
	case http.StatusOK:
		res.Outcome = message.Unknown
		// Success has no body; whatever has one is not APNs.
		if a.Whole && len(a.Body) == 0 {
			res.Outcome, res.Reference = message.Sent, overhttp.Line(a.Header.Get("Apns-Id"), secrets...)
		}
		return res, false
	case http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusTooManyRequests:
		res.Outcome = message.Deferred // refused as such, whatever the reason
	case http.StatusRequestEntityTooLarge:
		res.Outcome = message.Rejected
	default:
		res.Outcome = message.Unknown
		if known, ok := outcomes[a.Status][b.Reason]; ok {
			res.Outcome = known
		}
	}
	switch {
	case a.Status == http.StatusGone && res.Outcome == message.Rejected:
		res.Code = message.RecipientGone
	case a.Status == http.StatusServiceUnavailable && res.Outcome == message.Deferred && res.RetryAfter == 0:
		res.RetryAfter = busyPause
	}
	if b.Reason == "TooManyRequests" || b.Reason == "Shutdown" { // one device's, one connection's
		res.Fault = false
	}
	return res, a.Status == http.StatusForbidden && slices.Contains(tokenReasons, b.Reason)
}
