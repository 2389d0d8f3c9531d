package webhook

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

// ratePause is the wait after a refusal that doesn't say how long.
const ratePause = time.Second

// event is the body.
type event struct {
	Type string `json:"type"`
	Data data   `json:"data"`
}

type data struct {
	ID        message.ID     `json:"id"`
	Channel   string         `json:"channel"`
	Class     string         `json:"class"`
	Recipient string         `json:"recipient"`
	ExpiresAt time.Time      `json:"expires_at,omitzero"`
	Email     *message.Email `json:"email,omitempty"`
	Push      *message.Push  `json:"push,omitempty"`
}

// encode is the body for one message, the same at every attempt. Blind copies
// are left out: nobody but each of them may know.
func encode(env *message.Envelope, channel message.Channel) ([]byte, error) {
	if env.Content == nil || env.Content.Email == nil && env.Content.Push == nil || env.Content.Channel() != channel {
		return nil, errors.New("it is no " + channel.String())
	}
	d := data{
		ID: env.ID, Channel: channel.String(), Class: env.Position.Lane().Class.String(), Recipient: env.Recipient,
		ExpiresAt: env.ExpiresAt.UTC(), Push: env.Content.Push,
	}
	if e := env.Content.Email; e != nil {
		shown := *e
		shown.Bcc = nil
		d.Email = &shown
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(event{"message.deliver", d}); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// judge follows the table in the package comment. What a receiver says is its
// own; the status line is all that is shown of it.
func (s *slot) judge(a overhttp.Answer) (message.Result, bool) {
	res := a.Result("", "", s.p.cfg.Secrets...)
	res.Outcome = outcome(a)
	if a.Status == http.StatusGone {
		// It wants none any more, whatever the message: Standard Webhooks 1.0.0,
		// "Delivery success and failure".
		res.Fault = true
	}
	switch {
	case res.Outcome == message.Sent:
		res.Reference = overhttp.Line(a.Header.Get("X-Message-Id"), s.p.cfg.Secrets...)
	case (a.Status == http.StatusTooManyRequests || a.Status == http.StatusTooEarly) && res.RetryAfter == 0:
		res.RetryAfter = ratePause
	}
	return res, false
}

func outcome(a overhttp.Answer) message.Outcome {
	if a.Status/100 == 2 {
		if a.Whole {
			return message.Sent
		}
		return message.Unknown
	}
	switch a.Status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		if a.Whole {
			return message.Rejected
		}
		return message.Deferred
	case http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect,
		http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusGone,
		http.StatusUnsupportedMediaType, http.StatusTooEarly, http.StatusTooManyRequests:
		return message.Deferred
	}
	return message.Unknown
}
