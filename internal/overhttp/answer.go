package overhttp

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/stormpost/stormpost/internal/mail"
	"github.com/stormpost/stormpost/internal/message"
)

const (
	// maxAnswer bounds an answer's body; those of mail and push services are
	// well under 4 KiB.
	maxAnswer     = 64 << 10
	maxRetryAfter = time.Hour
	maxLine       = 500
)

// Answer is what a service said.
type Answer struct {
	Status int
	Text   string // the status line's, as "429 Too Many Requests"
	Header http.Header
	// Body is empty, and Whole false, if it was cut off or is over 64 KiB: half
	// an answer says nothing.
	Body  []byte
	Whole bool
	// RetryAfter is how long the header of that name asks to wait, at most an
	// hour; zero if it doesn't.
	RetryAfter time.Duration
	At         time.Time // when it came
}

// ReadAnswer reads a response, whose body the caller closes.
func ReadAnswer(resp *http.Response, now time.Time) Answer {
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	a := Answer{
		Status: resp.StatusCode, Text: resp.Status, Header: resp.Header, Body: raw, Whole: err == nil && len(raw) <= maxAnswer,
		RetryAfter: RetryAfter(resp.Header.Get("Retry-After"), now), At: now,
	}
	if !a.Whole {
		a.Body = nil
	}
	return a
}

// RetryAfter reads RFC 9110 §10.2.3: seconds or a date. Zero means none.
func RetryAfter(value string, now time.Time) time.Duration {
	if s, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64); err == nil {
		return time.Duration(min(max(s, 0), int64(maxRetryAfter/time.Second))) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return min(max(at.Sub(now), 0), maxRetryAfter)
	}
	return 0
}

// Line makes one printable line of at most 500 bytes, in which secrets are
// replaced.
func Line(s string, secrets ...string) string {
	for _, secret := range secrets {
		if secret != "" {
			s = strings.ReplaceAll(s, secret, "[secret]")
		}
	}
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
	if len(s) > maxLine {
		s = strings.ToValidUTF8(s[:maxLine], "")
	}
	return strings.TrimSpace(s)
}

// Result is a without its outcome: code, or else the status, the status line
// with what the service said, and how long it asks to wait. Who refuses the
// credential, the rate or everything is at fault as a whole.
func (a Answer) Result(code, text string, secrets ...string) message.Result {
	res := message.Result{Code: Line(code, secrets...), Reply: a.Text, RetryAfter: a.RetryAfter}
	res.Fault = a.Status == http.StatusUnauthorized || a.Status == http.StatusTooManyRequests || a.Status >= http.StatusInternalServerError
	if res.Code == "" {
		res.Code = strconv.Itoa(a.Status)
	}
	if text != "" {
		res.Reply += ": " + text
	}
	res.Reply = Line(res.Reply, secrets...)
	return res
}

// Unfit is the result for a message that can't be made a request of, before
// anything was sent.
func Unfit(err error) message.Result {
	res := message.Result{Outcome: message.Rejected, Unasked: true, Code: "unfit", Reply: "not sent: " + Line(err.Error())}
	if u := (*mail.Unfit)(nil); errors.As(err, &u) {
		res.Code = u.Code
	}
	return res
}
