package resend

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

const (
	quotaPause = time.Hour   // it may take until tomorrow, or until somebody pays
	ratePause  = time.Second // the limit is one of requests a second
)

// Errors that say that the message itself is at fault, by status.
var faults = map[int][]string{
	http.StatusBadRequest: {"validation_error", "invalid_idempotency_key"},
	http.StatusUnprocessableEntity: {
		"validation_error", "invalid_attachment", "invalid_from_address", "invalid_parameter", "missing_required_field",
	},
}

// judge follows the table in the package comment.
func judge(a overhttp.Answer, hide []string) (message.Result, overhttp.Standing) {
	var b struct {
		ID      string `json:"id"`
		Name    string `json:"name"`
		Message string `json:"message"`
	}
	if json.Unmarshal(a.Body, &b) != nil {
		b.ID, b.Name, b.Message = "", "", ""
	}
	res := a.Result(b.Name, b.Message, hide...)
	badKey := refusesKey(a.Status, b.Name, b.Message)
	if res.Outcome = outcome(a.Status, b.ID, b.Name); badKey {
		res.Outcome, res.Fault = message.Deferred, true
	}
	res.NoRepeat = b.Name == "invalid_idempotent_request" // other bytes won't become these
	switch {
	case res.Outcome == message.Sent:
		res.Reference = overhttp.Line(b.ID, hide...)
	case a.Status != http.StatusTooManyRequests || res.RetryAfter > 0:
	case b.Name == "daily_quota_exceeded" || b.Name == "monthly_quota_exceeded":
		res.RetryAfter = quotaPause
	default:
		res.RetryAfter = ratePause
	}
	if badKey {
		return res, overhttp.Refused
	}
	return res, standing(res.Outcome, b.Name)
}

// admits judges GET /domains. A key that may only send is refused it for that
// reason, which only a good key is.
func admits(a overhttp.Answer) overhttp.Standing {
	var b struct {
		Name    string `json:"name"`
		Message string `json:"message"`
	}
	if json.Unmarshal(a.Body, &b) != nil {
		b.Name, b.Message = "", ""
	}
	switch {
	case a.Status == http.StatusOK, a.Status == http.StatusUnauthorized && b.Name == "restricted_api_key":
		return overhttp.LetIn
	case refusesKey(a.Status, b.Name, b.Message):
		return overhttp.Refused
	}
	return overhttp.Unsaid
}

// refusesKey says whether an answer is about the key alone. A 400 is told from one
// about the message by its text alone; it says that the key is none, or, for
// another endpoint than sending, that there is no such key any more.
func refusesKey(status int, name, text string) bool {
	switch status {
	case http.StatusUnauthorized:
		return true
	case http.StatusForbidden:
		return name == "invalid_api_key"
	case http.StatusBadRequest:
		return name == "validation_error" && strings.HasPrefix(text, "API key is invalid")
	}
	return false
}

func outcome(status int, id, name string) message.Outcome {
	switch status {
	case http.StatusOK:
		if id != "" {
			return message.Sent
		}
	case http.StatusBadRequest:
		if slices.Contains(faults[status], name) {
			return message.Rejected
		}
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed,
		http.StatusTooManyRequests, http.StatusUnavailableForLegalReasons:
		return message.Deferred
	case http.StatusRequestEntityTooLarge:
		return message.Rejected
	case http.StatusUnprocessableEntity:
		if slices.Contains(faults[status], name) {
			return message.Rejected
		}
		return message.Deferred
	}
	return message.Unknown
}

func standing(o message.Outcome, name string) overhttp.Standing {
	switch {
	case o == message.Sent, o == message.Rejected && name != "":
		return overhttp.LetIn
	}
	return overhttp.Unsaid
}
