package fcm

import (
	"encoding/json"
	"errors"
	"maps"
	"strconv"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// idKey is the data member that holds the message's id.
const idKey = "stormpost_id"

const (
	// maxTTL is four weeks, FCM's limit:
	// https://firebase.google.com/docs/cloud-messaging/customize-messages/setting-message-lifespan
	maxTTL = 28 * 24 * time.Hour
	// maxAPNsCollapse is the length of an apns-collapse-id in bytes:
	// https://developer.apple.com/documentation/usernotifications/sending-notification-requests-to-apns
	maxAPNsCollapse = 64
)

// sendRequest is the body of messages:send, its fields those of
// https://firebase.google.com/docs/reference/fcm/rest/v1/projects.messages
type sendRequest struct {
	Message fcmMessage `json:"message"`
}

type fcmMessage struct {
	Token        string                `json:"token,omitempty"`
	Topic        string                `json:"topic,omitempty"`
	Notification *message.Notification `json:"notification,omitempty"`
	Data         map[string]string     `json:"data,omitempty"`
	Android      android               `json:"android"`
	APNs         *headers              `json:"apns,omitempty"`
	Webpush      *headers              `json:"webpush,omitempty"`
}

type android struct {
	CollapseKey string `json:"collapse_key,omitempty"`
	Priority    string `json:"priority"`
	TTL         string `json:"ttl,omitempty"`
}

type headers struct {
	Headers map[string]string `json:"headers"`
}

// encode is the request for one message. An error is the message's own fault.
func encode(env *message.Envelope, now time.Time) ([]byte, error) {
	if env.Content == nil || env.Content.Push == nil {
		return nil, errors.New("it is not a push")
	}
	p := env.Content.Push
	if (p.To.Token == "") == (p.To.Topic == "") {
		return nil, errors.New("it has neither one token nor one topic")
	}
	m := fcmMessage{Token: p.To.Token, Topic: p.To.Topic, Notification: p.Notification, Data: make(map[string]string, len(p.Data)+1)}
	maps.Copy(m.Data, p.Data)
	m.Data[idKey] = env.ID.String()
	urgent := env.Position.Lane().Class == message.Transactional

	m.Android = android{CollapseKey: p.CollapseKey, Priority: "NORMAL"}
	if urgent {
		m.Android.Priority = "HIGH"
	}
	apns, webpush := map[string]string{}, map[string]string{}
	// What shows nothing must be of priority 5 on Apple's devices.
	apns["apns-priority"] = "5"
	if urgent && p.Notification != nil {
		apns["apns-priority"] = "10"
	}
	if p.CollapseKey != "" && len(p.CollapseKey) <= maxAPNsCollapse {
		apns["apns-collapse-id"] = p.CollapseKey
	}
	if !env.ExpiresAt.IsZero() {
		// Rounded down: FCM should rather drop a stale message than show it.
		ttl := strconv.FormatInt(int64(min(max(env.ExpiresAt.Sub(now), 0), maxTTL)/time.Second), 10)
		m.Android.TTL = ttl + "s"
		apns["apns-expiration"] = strconv.FormatInt(env.ExpiresAt.Unix(), 10)
		webpush["TTL"] = ttl // RFC 8030 §5.2
		m.Webpush = &headers{webpush}
	}
	m.APNs = &headers{apns}
	return json.Marshal(sendRequest{m})
}
