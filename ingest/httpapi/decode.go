package httpapi

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/internal/message"
)

// emailLine is a batch's line for an email.
type emailLine struct {
	Channel string `json:"channel"`
	Key     string `json:"idempotency_key,omitempty"`
	message.Email
}

// pushLine is a batch's line for a push.
type pushLine struct {
	Channel string `json:"channel"`
	Key     string `json:"idempotency_key,omitempty"`
	message.Push
}

type shapes struct{ email, push, emailLine, pushLine, decision *shape }

func newShapes() shapes {
	return shapes{
		email:     shapeOf(reflect.TypeFor[message.Email]()),
		push:      shapeOf(reflect.TypeFor[message.Push]()),
		emailLine: shapeOf(reflect.TypeFor[emailLine]()),
		pushLine:  shapeOf(reflect.TypeFor[pushLine]()),
		decision:  shapeOf(reflect.TypeFor[decisionBody]()),
	}
}

// decode reads body into v, which s is the shape of. With field errors v holds
// the members that nothing is wrong with.
func decode(s *shape, body []byte, v any) (message.FieldErrors, error) {
	wrong, p := s.check(body)
	if p != nil {
		return nil, p
	}
	if len(wrong) > 0 {
		var members map[string]json.RawMessage
		if err := json.Unmarshal(body, &members); err != nil {
			return nil, fmt.Errorf("decode a checked body: %w", err)
		}
		for _, w := range wrong {
			delete(members, topLevel(w.Field))
		}
		rest, err := json.Marshal(members)
		if err != nil {
			return nil, fmt.Errorf("decode a checked body: %w", err)
		}
		body = rest
	}
	if err := json.Unmarshal(body, v); err != nil {
		return nil, fmt.Errorf("decode a checked body: %w", err)
	}
	return wrong, nil
}

// topLevel is the request's own member in a path.
func topLevel(field string) string {
	if i := strings.IndexAny(field, ".["); i > 0 {
		return field[:i]
	}
	return field
}

// decodeContent reads the request for one message of a channel.
func (s *shapes) decodeContent(channel message.Channel, body []byte) (*message.Content, message.FieldErrors, error) {
	if channel == message.ChannelEmail {
		c := &message.Content{Email: &message.Email{}}
		wrong, err := decode(s.email, body, c.Email)
		return c, wrong, err
	}
	c := &message.Content{Push: &message.Push{}}
	wrong, err := decode(s.push, body, c.Push)
	return c, wrong, err
}

// decodeLine reads one line of a batch, and its idempotency key.
func (s *shapes) decodeLine(body []byte) (key string, c *message.Content, wrong message.FieldErrors, err error) {
	// Which channel it is decides what the rest may be. What is wrong with this
	// first look, the second finds and names.
	var head struct {
		Channel string `json:"channel"`
	}
	_ = json.Unmarshal(body, &head)
	switch head.Channel {
	case "push":
		var line pushLine
		wrong, err = decode(s.pushLine, body, &line)
		return line.Key, &message.Content{Push: &line.Push}, wrong, err
	case "email":
		var line emailLine
		wrong, err = decode(s.emailLine, body, &line)
		return line.Key, &message.Content{Email: &line.Email}, wrong, err
	}
	if _, p := s.emailLine.check(body); p != nil {
		return "", nil, nil, p
	}
	return "", nil, message.FieldErrors{{Field: "channel", Problem: "want email or push"}}, nil
}

// complete adds what is wrong with the rest of a request of which some members
// couldn't be decoded.
func (a *api) complete(wrong message.FieldErrors, r ingest.Request) message.FieldErrors {
	named := map[string]bool{}
	for _, w := range wrong {
		named[topLevel(w.Field)] = true
	}
	for _, f := range a.Service.Validate(r) {
		if !named[topLevel(f.Field)] && len(wrong) < ingest.MaxProblems {
			wrong = append(wrong, f)
		}
	}
	return wrong
}
