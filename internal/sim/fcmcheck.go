package sim

import (
	"bytes"
	"encoding/json"
	"io"
	"regexp"
	"strings"
	"time"
)

// FCM's documented limits, in bytes of keys and values
// (https://firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode).
const (
	fcmMaxPayload      = 4096
	fcmMaxTopicPayload = 2048
	fcmMaxTTL          = 28 * 24 * time.Hour
	fcmMaxToken        = 4096 // no documented limit; real ones have some 160 bytes
	fcmMaxCondition    = 4096 // no documented limit, but one of five topics
)

var (
	fcmTopic = regexp.MustCompile(`^[a-zA-Z0-9-_.~%]+$`)
	fcmTTL   = regexp.MustCompile(`^[0-9]+(\.[0-9]{1,9})?s$`) // protobuf's Duration in JSON
)

// parseFCM reads a request body, and checks it as FCM does.
func parseFCM(body []byte) (m *fcmMessage, validateOnly bool, bad *fcmError) {
	var request struct {
		ValidateOnly bool        `json:"validate_only"`
		Message      *fcmMessage `json:"message"`
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&request); err != nil {
		e := badField("", "Invalid JSON payload received. "+err.Error())
		return nil, false, &e
	}
	if _, err := dec.Token(); err != io.EOF {
		e := badField("", "Invalid JSON payload received. More follows it.")
		return nil, false, &e
	}
	if request.Message == nil {
		e := badField("message", "The message is not set.")
		return nil, false, &e
	}
	if field, problem := request.Message.check(); problem != "" {
		e := badField(field, problem)
		return nil, false, &e
	}
	return request.Message, request.ValidateOnly, nil
}

// check finds the first thing that is wrong.
func (m *fcmMessage) check() (field, problem string) {
	targets := 0
	for _, t := range []string{m.Token, m.Topic, m.Condition} {
		if t != "" {
			targets++
		}
	}
	switch {
	case targets == 0:
		return "message", "Recipient of the message is not set."
	case targets > 1:
		return "message", "Only one of token, topic and condition can be set."
	case len(m.Token) > fcmMaxToken || strings.ContainsAny(m.Token, " \t\r\n"):
		return "message.token", "The registration token is not a valid FCM registration token"
	case len(m.Condition) > fcmMaxCondition:
		return "message.condition", "The condition is too long."
	case m.Topic != "" && !fcmTopic.MatchString(m.Topic):
		return "message.topic", "Malformed topic name"
	}
	// Its reference's stricter edition; the newer one reserves google. and
	// gcm.notification. alone.
	for key := range m.Data {
		if key == "" || key == "from" || key == "message_type" || strings.HasPrefix(key, "google") || strings.HasPrefix(key, "gcm") {
			return "message.data", "Invalid data payload key: " + key
		}
	}
	if a := m.Android; a != nil {
		if p := strings.ToUpper(a.Priority); p != "" && p != "NORMAL" && p != "HIGH" {
			return "message.android.priority", "Invalid value for the priority."
		}
		if a.TTL != "" {
			d, err := time.ParseDuration(a.TTL)
			if err != nil || !fcmTTL.MatchString(a.TTL) || d > fcmMaxTTL {
				return "message.android.ttl", "Illegal format; must end with 's', and be at most four weeks."
			}
		}
	}
	limit := fcmMaxPayload
	if m.Topic != "" || m.Condition != "" {
		limit = fcmMaxTopicPayload
	}
	if m.payload() > limit {
		return "message", "Message is too big"
	}
	return "", ""
}

// payload is the size that the limits are about.
func (m *fcmMessage) payload() int {
	n := 0
	for k, v := range m.Data {
		n += len(k) + len(v)
	}
	if m.Notification != nil {
		for k, v := range map[string]string{"title": m.Notification.Title, "body": m.Notification.Body, "image": m.Notification.Image} {
			if v != "" {
				n += len(k) + len(v)
			}
		}
	}
	return n
}
