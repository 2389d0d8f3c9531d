package message

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
)

// ErrBadContent is wrapped by what DecodeContent returns for bytes that are
// not canonical content.
var ErrBadContent = errors.New("not message content")

// Content is a submission's request as it was given: decoded, with nothing
// defaulted or normalised. Its canonical bytes are what the ledger keeps, what
// a Kafka record carries and what the fingerprint is taken of. Fields may be
// added, always omitted when empty; the ones here never change name, order or
// meaning, or a request repeated after an upgrade would count as another one.
type Content struct {
	Email *Email `json:"email,omitempty"`
	Push  *Push  `json:"push,omitempty"`
}

// Options is what a request of every channel may say. Times are zero when the
// request didn't give them.
type Options struct {
	Class        string    `json:"class,omitempty"`         // default transactional
	Stream       string    `json:"stream,omitempty"`        // default "default"
	SendAt       time.Time `json:"send_at,omitzero"`        // not before
	ExpiresAt    time.Time `json:"expires_at,omitzero"`     // never after
	SupersedeKey string    `json:"supersede_key,omitempty"` // of these only the newest is sent
	Tags         []string  `json:"tags,omitempty"`
	// BypassSuppression takes it also if its recipient is suppressed.
	BypassSuppression bool `json:"bypass_suppression,omitempty"`
}

// Email is a request for POST /v1/emails. Addresses are RFC 5322 mailboxes.
type Email struct {
	From        string            `json:"from"`
	To          []string          `json:"to"`
	Cc          []string          `json:"cc,omitempty"`
	Bcc         []string          `json:"bcc,omitempty"`
	ReplyTo     []string          `json:"reply_to,omitempty"`
	Subject     string            `json:"subject,omitempty"`
	Text        string            `json:"text,omitempty"`
	HTML        string            `json:"html,omitempty"`
	Headers     map[string]string `json:"headers,omitempty"`
	Attachments []Attachment      `json:"attachments,omitempty"`
	Options
}

// Attachment is one file of an email. JSON carries Content as base64.
type Attachment struct {
	Filename    string `json:"filename"`
	ContentType string `json:"content_type,omitempty"`
	ContentID   string `json:"content_id,omitempty"` // makes it inline, for cid: links
	Content     []byte `json:"content"`
}

// Push is a request for POST /v1/pushes.
type Push struct {
	Platform     string            `json:"platform"` // fcm | apns | webpush
	To           Target            `json:"to"`
	Notification *Notification     `json:"notification,omitempty"`
	Data         map[string]string `json:"data,omitempty"`
	CollapseKey  string            `json:"collapse_key,omitempty"`
	Options
}

// Notification is the visible part of a push.
type Notification struct {
	Title string `json:"title,omitempty"`
	Body  string `json:"body,omitempty"`
	Image string `json:"image,omitempty"`
}

// Target is where a push goes: exactly one of Token, Topic and Endpoint. In
// JSON a token is a plain string, the others are objects.
type Target struct {
	Token    string
	Topic    string
	Endpoint string            // Web Push, with Keys p256dh and auth
	Keys     map[string]string // RFC 8291
}

type targetObject struct {
	Topic    string            `json:"topic,omitempty"`
	Endpoint string            `json:"endpoint,omitempty"`
	Keys     map[string]string `json:"keys,omitempty"`
}

// MarshalJSON writes a string or an object.
func (t Target) MarshalJSON() ([]byte, error) {
	if t.Topic == "" && t.Endpoint == "" {
		return json.Marshal(t.Token)
	}
	return json.Marshal(targetObject{t.Topic, t.Endpoint, t.Keys})
}

// UnmarshalJSON reads a string or an object, and refuses unknown members.
func (t *Target) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		*t = Target{}
		return json.Unmarshal(b, &t.Token)
	}
	var m map[string]json.RawMessage
	if err := json.Unmarshal(b, &m); err != nil {
		return errors.New(`want a token string, {"topic":…} or {"endpoint":…,"keys":{…}}`)
	}
	for k := range m {
		if k != "topic" && k != "endpoint" && k != "keys" {
			return fmt.Errorf("unknown member %q", k)
		}
	}
	var o targetObject
	if err := json.Unmarshal(b, &o); err != nil {
		return err
	}
	*t = Target{Topic: o.Topic, Endpoint: o.Endpoint, Keys: o.Keys}
	return nil
}

// String is what lists and answers show as the recipient.
func (t Target) String() string {
	switch {
	case t.Topic != "":
		return "/topics/" + t.Topic
	case t.Endpoint != "":
		return t.Endpoint
	}
	return t.Token
}

// Options is what the request says beside its channel's own fields.
func (c *Content) Options() *Options {
	if c.Email != nil {
		return &c.Email.Options
	}
	return &c.Push.Options
}

// Channel is the content's channel.
func (c *Content) Channel() Channel {
	if c.Email != nil {
		return ChannelEmail
	}
	return ChannelPush
}

// Lane is the lane that the content asks for, transactional by default.
func (c *Content) Lane() (Lane, error) {
	name := c.Options().Class
	if name == "" {
		name = "transactional"
	}
	class, err := ParseClass(name)
	return Lane{class, c.Channel()}, err
}

// Stream is the stream that the content asks for, "default" by default.
func (c *Content) Stream() string {
	if s := c.Options().Stream; s != "" {
		return s
	}
	return "default"
}

// Recipients lists one string each, in the order of a Position's index.
func (c *Content) Recipients() []string {
	if c.Push != nil {
		return []string{c.Push.To.String()}
	}
	e := c.Email
	all := make([]string, 0, len(e.To)+len(e.Cc)+len(e.Bcc))
	return append(append(append(all, e.To...), e.Cc...), e.Bcc...)
}

// Encode is the canonical form of c. It leaves <, > and & as they are: escaped
// for HTML, an HTML mail would grow to much more than was taken in.
func (c *Content) Encode() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(c); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// DecodeContent reads canonical content.
func DecodeContent(b []byte) (*Content, error) {
	var c Content
	if err := jsonv2.Unmarshal(b, &c); err != nil { // a fourth of encoding/json's time: decision 7
		return nil, fmt.Errorf("%w: %w", ErrBadContent, err)
	}
	if (c.Email == nil) == (c.Push == nil) {
		return nil, fmt.Errorf("%w: want email or push", ErrBadContent)
	}
	return &c, nil
}
