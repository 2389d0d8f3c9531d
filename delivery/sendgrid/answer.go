package sendgrid

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

// ratePause is the wait after a 429 that doesn't say how long: limits are by
// the minute.
const (
	ratePause    = time.Minute
	maxRatePause = time.Hour
)

// judge follows the table in the package comment.
func judge(a overhttp.Answer, hide []string) (message.Result, overhttp.Standing) {
	var b struct {
		Errors []struct {
			Message string `json:"message"`
			Field   string `json:"field"`
		} `json:"errors"`
	}
	if json.Unmarshal(a.Body, &b) != nil {
		b.Errors = nil
	}
	var texts []string
	for _, e := range b.Errors {
		if e.Field != "" {
			e.Message = e.Field + ": " + e.Message
		}
		texts = append(texts, e.Message)
	}
	text := strings.Join(texts, "; ")
	res := a.Result("", text, hide...)
	res.Outcome = outcome(a, len(b.Errors) > 0)
	switch {
	case res.Outcome == message.Sent:
		res.Reference = overhttp.Line(a.Header.Get("X-Message-Id"), hide...)
	case a.Status == http.StatusTooManyRequests && res.RetryAfter == 0:
		res.RetryAfter = resetIn(a.Header.Get("X-RateLimit-Reset"), a.At)
	}
	switch {
	case a.Status == http.StatusUnauthorized && !strings.Contains(text, "credits exceeded"):
		return res, overhttp.Refused
	case res.Outcome == message.Sent, a.Status == http.StatusBadRequest && res.Outcome == message.Rejected:
		return res, overhttp.LetIn
	}
	return res, overhttp.Unsaid
}

// sendScope is what a key must be allowed.
const sendScope = "mail.send"

// admits judges GET /v3/scopes, which every key may ask. One that may not send is
// no good, although it is a key.
func admits(a overhttp.Answer) overhttp.Standing {
	var b struct {
		Scopes []string `json:"scopes"`
	}
	switch {
	case a.Status == http.StatusUnauthorized:
		return overhttp.Refused
	case a.Status != http.StatusOK || json.Unmarshal(a.Body, &b) != nil:
		return overhttp.Unsaid
	case !slices.Contains(b.Scopes, sendScope):
		return overhttp.Refused
	}
	return overhttp.LetIn
}

// resetIn reads the Unix time at which the limit's window ends.
func resetIn(value string, now time.Time) time.Duration {
	at, err := strconv.ParseInt(value, 10, 64)
	if err != nil || at <= now.Unix() {
		return ratePause
	}
	if at-now.Unix() > int64(maxRatePause/time.Second) {
		return maxRatePause
	}
	return time.Duration(at-now.Unix()) * time.Second
}

func outcome(a overhttp.Answer, told bool) message.Outcome {
	switch a.Status {
	case http.StatusAccepted:
		if a.Whole {
			return message.Sent
		}
	case http.StatusBadRequest:
		if told {
			return message.Rejected
		}
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed,
		http.StatusNotAcceptable, http.StatusUnsupportedMediaType, http.StatusTooManyRequests:
		return message.Deferred
	case http.StatusRequestEntityTooLarge:
		return message.Rejected
	}
	return message.Unknown
}
