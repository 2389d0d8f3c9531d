package ingest

import (
	"crypto/ecdh"
	"encoding/base64"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	maxToken       = 4096
	maxTopic       = 900
	maxData        = 100
	maxDataKey     = 255
	maxCollapseKey = 64 // bytes: apns-collapse-id's limit, the least of all
)

func (s *Service) validatePush(p *problems, push *message.Push) {
	switch push.Platform {
	case "":
		p.add("platform", "is required")
	case "fcm", "apns", "webpush":
		if !s.hasPlatform(push.Platform) {
			p.add("platform", "no provider is configured for %s", push.Platform)
		}
	default:
		p.add("platform", "unknown platform %s: want fcm, apns or webpush", quote(push.Platform))
	}
	validateTarget(p, push)
	validateNotification(p, push.Notification)
	if push.Notification == nil && len(push.Data) == 0 {
		p.add("notification", "want notification or data")
	}
	validateData(p, push)
	validateText(p, "collapse_key", push.CollapseKey, maxCollapseKey)
	if len(p.list) == 0 && s.cfg.PushCheck != nil {
		addChecked(p, s.cfg.PushCheck(push), "data")
	}
}

// addChecked takes over a provider's judgement, with its fields if it names any,
// else of field.
func addChecked(p *problems, err error, field string) {
	var fields message.FieldErrors
	if err != nil && !errors.As(err, &fields) {
		fields = message.FieldErrors{{Field: field, Problem: err.Error()}}
	}
	for _, f := range fields {
		p.add(f.Field, "%s", f.Problem)
	}
}

func validateTarget(p *problems, push *message.Push) {
	to := push.To
	given := 0
	for _, s := range []string{to.Token, to.Topic, to.Endpoint} {
		if s != "" {
			given++
		}
	}
	web := push.Platform == "webpush"
	switch {
	case given == 0:
		p.add("to", "is required")
	case given > 1:
		p.add("to", "want one of token, topic and endpoint")
	case to.Endpoint != "":
		if !web {
			p.add("to.endpoint", "is for platform webpush alone")
		}
		validateSubscription(p, to)
	case len(to.Keys) > 0:
		p.add("to.keys", "go with an endpoint")
	case web:
		p.add("to", "platform webpush wants an endpoint with keys")
	case to.Topic != "" && push.Platform != "fcm":
		p.add("to.topic", "is for platform fcm alone")
	case to.Topic != "":
		// The alphabet of FCM's topic names:
		// https://firebase.google.com/docs/cloud-messaging/manage-topics
		if len(to.Topic) > maxTopic || !only(to.Topic, func(b byte) bool { return isNameByte(b) || b == '~' || b == '%' }) {
			p.add("to.topic", "want 1 to %d of A–Z a–z 0–9 - _ . ~ %%", maxTopic)
		}
	default:
		// A slash at the start would read as a topic in lists.
		if len(to.Token) > maxToken || to.Token[0] == '/' || !only(to.Token, func(b byte) bool { return b > ' ' && b <= '~' }) {
			p.add("to", "want a token of 1 to %d printable ASCII characters without blanks", maxToken)
		}
	}
}

// validateSubscription judges a browser's push subscription (RFC 8291 §3.1: an
// uncompressed P-256 point, and 16 bytes of secret).
func validateSubscription(p *problems, to message.Target) {
	if !httpsURL(to.Endpoint) {
		p.add("to.endpoint", "want an https link")
	}
	for _, k := range []struct {
		name   string
		length int
	}{{"auth", 16}, {"p256dh", 65}} {
		b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(to.Keys[k.name], "="))
		if err != nil || len(b) != k.length {
			p.add("to.keys."+k.name, "want %d bytes in base64url", k.length)
		} else if k.name == "p256dh" {
			if _, err := ecdh.P256().NewPublicKey(b); err != nil {
				p.add("to.keys.p256dh", "is no point of the curve P-256")
			}
		}
	}
	for _, name := range sortedKeys(to.Keys) {
		if name != "auth" && name != "p256dh" {
			p.add(MemberPath("to.keys", name), "is unknown")
		}
	}
}

func validateNotification(p *problems, n *message.Notification) {
	if n == nil {
		return
	}
	if n.Title == "" && n.Body == "" {
		p.add("notification", "want a title or body")
	}
	validateBody(p, "notification.title", n.Title)
	validateBody(p, "notification.body", n.Body)
	if n.Image != "" && !httpsURL(n.Image) {
		p.add("notification.image", "want an https link")
	}
}

func validateData(p *problems, push *message.Push) {
	data := push.Data
	if len(data) > maxData {
		p.add("data", "has %d members, want at most %d", len(data), maxData)
		return
	}
	for _, key := range sortedKeys(data) {
		field := MemberPath("data", key)
		switch {
		case key == "":
			p.add(field, "has an empty name")
		case key == "stormpost_id" || push.Platform == "fcm" && reservedByFCM(key):
			p.add(field, "is a reserved name")
		default:
			validateText(p, field, key, maxDataKey)
		}
		validateBody(p, field, data[key])
	}
}

// reservedByFCM says whether FCM keeps a name of data for itself. Its reference
// reserved all that begins with google or gcm once, and by now google. and
// gcm.notification. alone; which of the two its service holds to it doesn't say:
// https://firebase.google.com/docs/reference/fcm/rest/v1/projects.messages
func reservedByFCM(key string) bool {
	return key == "from" || key == "message_type" || strings.HasPrefix(key, "google") || strings.HasPrefix(key, "gcm")
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
