package postmark

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

const (
	ratePause        = time.Second // Postmark documents no rate
	maintenancePause = time.Minute
)

// Postmark's error codes that decide an outcome:
// https://postmarkapp.com/developer/api/overview#error-codes
const (
	codeMaintenance = 100
	codeInvalid     = 300
	codeInactive    = 406
	codeNone        = 0
	noCode          = -1 // the answer has none
)

// unverified is in the message of a 300 that is for a sender whom the account has
// not verified: https://postmarkapp.com/support/article/troubleshooting-422-unprocessable-entity-errors
const unverified = "sender signature"

// faults are the codes of 422 that speak of the message. 409 (JSON required) is of
// the request's Accept and Content-Type, which are every message's.
var faults = map[int]bool{
	300: true, // invalid email request; see unverified
	402: true, // invalid JSON
	403: true, // incompatible JSON
	406: true, // inactive recipient: it bounced for good, complained or was unsubscribed
	411: true, // forbidden attachment type
}

// judge follows the table in the package comment.
func judge(a overhttp.Answer, hide []string) (message.Result, overhttp.Standing) {
	var b struct {
		ErrorCode *int
		Message   string
		MessageID string
	}
	code := noCode
	if json.Unmarshal(a.Body, &b) != nil {
		b.Message, b.MessageID = "", ""
	} else if b.ErrorCode != nil {
		code = *b.ErrorCode
	}
	text := ""
	if code > codeNone {
		text = strconv.Itoa(code)
	}
	res := a.Result(text, b.Message, hide...)
	res.Outcome = outcome(a.Status, code, b.MessageID)
	if code == codeInvalid && res.Outcome == message.Rejected && strings.Contains(strings.ToLower(b.Message), unverified) {
		res.Outcome = message.Deferred // as 400 and 401 are, by code
	}
	switch {
	case res.Outcome == message.Sent:
		res.Reference = overhttp.Line(b.MessageID, hide...)
	case res.Outcome == message.Rejected && code == codeInactive:
		res.Code = message.RecipientGone
	case res.RetryAfter > 0:
	case a.Status == http.StatusTooManyRequests:
		res.RetryAfter = ratePause
	case code == codeMaintenance:
		res.RetryAfter = maintenancePause
	}
	switch {
	case a.Status == http.StatusUnauthorized:
		return res, overhttp.Refused
	case res.Outcome == message.Sent, a.Status == http.StatusUnprocessableEntity && code > codeNone:
		return res, overhttp.LetIn
	}
	return res, overhttp.Unsaid
}

// admits judges GET /server: https://postmarkapp.com/developer/api/server-api
func admits(a overhttp.Answer) overhttp.Standing {
	switch a.Status {
	case http.StatusOK:
		return overhttp.LetIn
	case http.StatusUnauthorized:
		return overhttp.Refused
	}
	return overhttp.Unsaid
}

func outcome(status, code int, id string) message.Outcome {
	switch status {
	case http.StatusOK:
		if code == codeNone && id != "" {
			return message.Sent
		}
	case http.StatusUnauthorized, http.StatusNotFound, http.StatusUnsupportedMediaType, http.StatusTooManyRequests:
		return message.Deferred
	case http.StatusRequestEntityTooLarge:
		return message.Rejected
	case http.StatusUnprocessableEntity:
		if faults[code] {
			return message.Rejected
		}
		return message.Deferred
	case http.StatusServiceUnavailable:
		if code == codeMaintenance {
			return message.Deferred
		}
	}
	return message.Unknown
}
