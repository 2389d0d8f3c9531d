package fcm

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

// FCM's error codes that decide an outcome:
// https://firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode
const (
	codeInvalidArgument  = "INVALID_ARGUMENT"
	codeThirdPartyAuth   = "THIRD_PARTY_AUTH_ERROR"
	codeSenderIDMismatch = "SENDER_ID_MISMATCH"
	codeUnregistered     = "UNREGISTERED"
)

// quotaPause is what Google asks for after a 429 without Retry-After:
// https://firebase.google.com/docs/cloud-messaging/scale-fcm
const quotaPause = time.Minute

// answer is what FCM said, as far as it can be read.
type answer struct {
	status     int
	code       string // FcmError's, else google.rpc.Status's; empty if there is none
	text       string // for people
	name       string // projects/*/messages/*, of what it took
	retryAfter time.Duration
}

// readAnswer reads a response. A body that is not whole says nothing.
func readAnswer(got overhttp.Answer) answer {
	a := answer{status: got.Status, text: got.Text, retryAfter: got.RetryAfter}
	var b struct {
		Name  string `json:"name"`
		Error struct {
			Status  string `json:"status"`
			Message string `json:"message"`
			Details []struct {
				ErrorCode string `json:"errorCode"`
			} `json:"details"`
		} `json:"error"`
	}
	if !got.Whole || json.Unmarshal(got.Body, &b) != nil {
		return a
	}
	a.name, a.code = b.Name, b.Error.Status
	for _, d := range b.Error.Details {
		if d.ErrorCode != "" {
			a.code = d.ErrorCode
		}
	}
	if b.Error.Message != "" {
		a.text += ": " + b.Error.Message
	}
	return a
}

// result is what the answer means for the message.
func (a answer) result(token string) message.Result {
	res := message.Result{
		Outcome: a.outcome(), Code: overhttp.Line(a.code, token), Reply: overhttp.Line(a.text, token), RetryAfter: a.retryAfter,
		// Not 429, which may be for one device alone.
		Fault: a.status == http.StatusUnauthorized || a.status >= http.StatusInternalServerError,
	}
	if res.Code == "" {
		res.Code = strconv.Itoa(a.status)
	}
	if a.status == http.StatusNotFound && res.Outcome == message.Rejected {
		res.Code = message.RecipientGone
	}
	if res.Outcome == message.Sent {
		res.Reference = overhttp.Line(a.name, token)
	}
	if a.status == http.StatusTooManyRequests && res.RetryAfter == 0 {
		res.RetryAfter = quotaPause
	}
	return res
}

// outcome follows the table in the package comment. A status that refuses
// the request as such (RFC 9110 §15.5) says that nothing was taken, whoever on
// the way sent it; but only FCM's own code says that it never will be.
func (a answer) outcome() message.Outcome {
	switch a.status {
	case http.StatusOK:
		if a.name != "" {
			return message.Sent
		}
	case http.StatusBadRequest:
		if a.code == codeInvalidArgument {
			return message.Rejected
		}
	case http.StatusUnauthorized, http.StatusTooManyRequests:
		return message.Deferred
	case http.StatusForbidden:
		if a.code == codeSenderIDMismatch {
			return message.Rejected
		}
		return message.Deferred
	case http.StatusNotFound:
		if a.code == codeUnregistered {
			return message.Rejected
		}
		return message.Deferred
	case http.StatusRequestEntityTooLarge:
		return message.Rejected
	}
	return message.Unknown
}

// vouches says whether the answer is one of those that FCM gives only to whom it
// has let in.
func (a answer) vouches() bool {
	return a.status == http.StatusOK || a.status == http.StatusBadRequest && a.code == codeInvalidArgument ||
		a.status == http.StatusNotFound && a.code == codeUnregistered || a.code == codeSenderIDMismatch
}
