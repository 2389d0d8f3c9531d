package fcm

import (
	"fmt"

	"github.com/stormpost/stormpost/internal/message"
)

// FCM's limits for a payload, keys and values together:
// https://firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode
const (
	MaxPayload      = 4096
	MaxTopicPayload = 2048
)

// idSize is what data member stormpost_id takes.
var idSize = len(idKey) + len(message.ID{}.String())

// PayloadSize is the size of p as FCM counts it, in bytes: names and values of
// data, with the id that Send adds, and of the notification.
func PayloadSize(p *message.Push) int {
	size := idSize
	for k, v := range p.Data {
		size += len(k) + len(v)
	}
	if n := p.Notification; n != nil {
		for name, v := range map[string]string{"title": n.Title, "body": n.Body, "image": n.Image} {
			if v != "" {
				size += len(name) + len(v)
			}
		}
	}
	return size
}

// Check says whether p is too large for FCM. It fails with message.FieldErrors.
func Check(p *message.Push) error {
	limit, field := MaxPayload, "data"
	if p.To.Topic != "" {
		limit = MaxTopicPayload
	}
	if len(p.Data) == 0 {
		field = "notification"
	}
	if size := PayloadSize(p); size > limit {
		return message.FieldErrors{{Field: field, Problem: fmt.Sprintf("notification and data are %d bytes together, FCM takes at most %d", size, limit)}}
	}
	return nil
}
