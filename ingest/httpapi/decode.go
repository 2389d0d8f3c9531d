package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"unicode/utf8"

	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/internal/message"
)

// emailLine is a batch's line for an email.
type emailLine struct {
	Channel string `json:"channel"`
	Key     string `json:"idempotency_key,omitempty" minLength:"1" maxLength:"255"`
	message.Email
}

// pushLine is a batch's line for a push.
type pushLine struct {
	Channel string `json:"channel"`
	Key     string `json:"idempotency_key,omitempty" minLength:"1" maxLength:"255"`
	message.Push
}

type shapes struct{ email, push, emailLine, pushLine *shape }

func newShapes() shapes {
	return shapes{
		email:     shapeOf(reflect.TypeFor[message.Email]()),
		push:      shapeOf(reflect.TypeFor[message.Push]()),
		emailLine: shapeOf(reflect.TypeFor[emailLine]()),
		pushLine:  shapeOf(reflect.TypeFor[pushLine]()),
	}
}

// decode reads body into v, a zero value that s is the shape of. With field
// errors v holds the members that nothing is wrong with.
func decode(s *shape, body []byte, v any) (message.FieldErrors, error) {
	if !utf8.Valid(body) {
		return nil, malformed("is not valid UTF-8")
	}
	// Before it touches v, Unmarshal makes sure that all of body is JSON.
	err := json.Unmarshal(body, v)
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return nil, malformed(fmt.Sprintf("is not valid JSON: %v after %d bytes", syntax, syntax.Offset))
	}
	if first := bytes.TrimLeft(body, " \t\r\n"); first[0] != '{' {
		return nil, malformed("want a JSON object")
	}
	wrong, bad := s.check(body)
	if len(wrong) > 0 {
		err = decodeRest(body, bad, v)
	}
	if err != nil {
		return nil, fmt.Errorf("decode a checked body: %w", err)
	}
	return wrong, nil
}

// decodeRest reads body again, without the members that something is wrong with.
func decodeRest(body []byte, bad map[string]bool, v any) error {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(body, &members); err != nil {
		return err
	}
	for name := range bad {
		delete(members, name)
	}
	rest, err := json.Marshal(members)
	if err != nil {
		return err
	}
	reflect.ValueOf(v).Elem().SetZero()
	return json.Unmarshal(rest, v)
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
	if _, err := decode(s.emailLine, body, &emailLine{}); err != nil {
		return "", nil, nil, err
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
