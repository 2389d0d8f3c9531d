package apns

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// What the payload holds beside what Apple and the app put there.
const (
	idKey    = "stormpost_id"    // the message's id
	imageKey = "stormpost_image" // for the app's notification service extension, which has to load it
)

const (
	// MaxPayload is Apple's limit for a notification, in bytes:
	// https://developer.apple.com/documentation/usernotifications/generating-a-remote-notification
	MaxPayload = 4096
	// maxCollapse is the length of an apns-collapse-id, in bytes.
	maxCollapse = 64
	// Device tokens are hexadecimal, of a length that Apple doesn't promise; today
	// they have 64 characters.
	minToken, maxToken = 64, 200
)

type aps struct {
	Alert            *alert `json:"alert,omitempty"`
	ContentAvailable int    `json:"content-available,omitempty"`
	MutableContent   int    `json:"mutable-content,omitempty"`
}

type alert struct {
	Title string `json:"title,omitempty"`
	Body  string `json:"body,omitempty"`
}

// encode is the request's body. Data stands beside aps, as Apple has it.
func encode(p *message.Push, id message.ID) ([]byte, error) {
	all := make(map[string]any, len(p.Data)+3)
	for k, v := range p.Data {
		all[k] = v
	}
	all[idKey] = id.String()
	if n := p.Notification; n != nil {
		a := aps{Alert: &alert{n.Title, n.Body}}
		if n.Image != "" {
			a.MutableContent = 1
			all[imageKey] = n.Image
		}
		all["aps"] = a
	} else {
		all["aps"] = aps{ContentAvailable: 1}
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // it would only take room
	if err := e.Encode(all); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// header is the request's for env, with a provider token.
func (p *Provider) header(env *message.Envelope, token string) http.Header {
	push := env.Content.Push
	kind, priority := "alert", "5"
	switch {
	case push.Notification == nil:
		kind = "background" // whose priority must be 5
	case env.Position.Lane().Class == message.Transactional:
		priority = "10"
	}
	expiration := "0" // try once
	if !env.ExpiresAt.IsZero() {
		expiration = strconv.FormatInt(max(env.ExpiresAt.Unix(), 0), 10)
	}
	return http.Header{
		"Authorization": {"bearer " + token}, "Content-Type": {"application/json"},
		"Apns-Topic": {p.cfg.Topic}, "Apns-Push-Type": {kind}, "Apns-Priority": {priority},
		"Apns-Expiration": {expiration}, "Apns-Id": {apnsID(env.ID)}, "Apns-Collapse-Id": {collapseID(env)},
	}
}

// collapseID is the message's id unless it has a collapse key; one that doesn't
// fit into the header stands there as its hash.
func collapseID(env *message.Envelope) string {
	key := env.Content.Push.CollapseKey
	if key == "" {
		return env.ID.String()
	}
	fits := len(key) <= maxCollapse
	for i := range len(key) {
		fits = fits && key[i] > ' ' && key[i] <= '~'
	}
	if !fits {
		sum := sha256.Sum256([]byte(key))
		return base64.RawURLEncoding.EncodeToString(sum[:])
	}
	return key
}

// apnsID is a UUID (RFC 9562 §5.8) made of the message's id.
func apnsID(id message.ID) string {
	sum := sha256.Sum256(append([]byte("apns-id"), id[:]...))
	sum[6] = sum[6]&0x0f | 0x80
	sum[8] = sum[8]&0x3f | 0x80
	h := hex.EncodeToString(sum[:16])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// checkToken wants a device token as apps get it, in hexadecimal.
func checkToken(token string) error {
	if _, err := hex.DecodeString(token); err != nil || len(token) < minToken || len(token) > maxToken {
		return fmt.Errorf("want an APNs device token: %d to %d hexadecimal digits", minToken, maxToken)
	}
	return nil
}

// fit says what keeps env from being a request.
func fit(env *message.Envelope) error {
	if env.Content == nil || env.Content.Push == nil {
		return errors.New("it is not a push")
	}
	return checkToken(env.Content.Push.To.Token)
}

// Check says what is wrong with p for APNs: its device token, names in its data,
// or that it is too large. It fails with message.FieldErrors.
func Check(p *message.Push) error {
	var errs message.FieldErrors
	add := func(field, format string, args ...any) {
		errs = append(errs, message.FieldError{Field: field, Problem: fmt.Sprintf(format, args...)})
	}
	if err := checkToken(p.To.Token); err != nil {
		add("to", "%v", err)
	}
	for _, name := range []string{"aps", imageKey} {
		if _, ok := p.Data[name]; ok {
			add("data."+name, "is a reserved name")
		}
	}
	body, err := encode(p, message.ID{})
	if err != nil {
		add("data", "can't be encoded")
	}
	if len(body) > MaxPayload {
		field := "data"
		if len(p.Data) == 0 {
			field = "notification"
		}
		add(field, "notification and data are %d bytes together as JSON, APNs takes at most %d", len(body), MaxPayload)
	}
	if len(errs) > 0 {
		return errs
	}
	return nil
}

// busyPause is after how long Apple allows a retry of what it was too busy for.
const busyPause = 15 * time.Minute
