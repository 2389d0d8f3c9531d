package webpush

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

// idKey is the data member that holds the message's id.
const idKey = "stormpost_id"

// maxTTL is four weeks: what services keep at most.
const maxTTL = 28 * 24 * time.Hour

// payload is what the page's service worker gets by PushEvent.data.json().
type payload struct {
	Notification *message.Notification `json:"notification,omitempty"`
	Data         map[string]string     `json:"data"`
}

// encode is the payload of p, before encryption.
func encode(p *message.Push, id message.ID) ([]byte, error) {
	data := make(map[string]string, len(p.Data)+1)
	maps.Copy(data, p.Data)
	data[idKey] = id.String()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // it would only take room
	if err := e.Encode(payload{p.Notification, data}); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// endpoint reads a subscription's URL. It may be any host's, since every browser
// has a push service of its own; so what it names is checked again when it is
// dialled.
func endpoint(text string, allowPrivate bool) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Opaque != "":
		return nil, errors.New("want an https link")
	case allowPrivate:
	case strings.EqualFold(strings.TrimSuffix(u.Hostname(), "."), "localhost"):
		return nil, errors.New("is not on the public Internet")
	default:
		if ip, err := netip.ParseAddr(u.Hostname()); err == nil && !overhttp.Public(ip) {
			return nil, errors.New("is not on the public Internet")
		}
	}
	u.Host = strings.ToLower(u.Host)
	u.Fragment, u.RawFragment = "", ""
	return u, nil
}

// origin is a push service's, as an audience is written (RFC 6454 §6.1).
func origin(u *url.URL) string {
	return u.Scheme + "://" + strings.TrimSuffix(strings.TrimSuffix(u.Host, ":443"), ":")
}

var urgency = map[message.Class]string{message.Transactional: "high", message.Trigger: "normal", message.Campaign: "low"}

// header is all of the request's but its Authorization (RFC 8030 §5).
func (p *Provider) header(env *message.Envelope) http.Header {
	ttl := maxTTL
	if !env.ExpiresAt.IsZero() {
		ttl = min(max(env.ExpiresAt.Sub(p.cfg.Now()), 0), maxTTL)
	}
	h := http.Header{
		"Content-Type": {"application/octet-stream"}, "Content-Encoding": {"aes128gcm"},
		// Rounded down: it should rather be dropped than be shown stale.
		"Ttl":     {strconv.FormatInt(int64(ttl/time.Second), 10)},
		"Urgency": {urgency[env.Position.Lane().Class]},
	}
	switch key := env.Content.Push.CollapseKey; {
	case key != "":
		h["Topic"] = []string{topic("key", key)}
	case p.cfg.ReplaceRepeats:
		h["Topic"] = []string{topic("id", env.ID.String())}
	}
	return h
}

// topic fits any text into a Topic, which has at most 32 characters of base64url
// (RFC 8030 §5.4), and keeps it to ourselves.
func topic(kind, text string) string {
	sum := sha256.Sum256([]byte(kind + "\x00" + text))
	return base64.RawURLEncoding.EncodeToString(sum[:24])
}

// Check says what is wrong with p for Web Push: where its endpoint is, its keys,
// or that it is too large. It fails with message.FieldErrors.
func Check(p *message.Push, allowPrivate bool) error {
	var errs message.FieldErrors
	if _, err := endpoint(p.To.Endpoint, allowPrivate); err != nil {
		errs = append(errs, message.FieldError{Field: "to.endpoint", Problem: err.Error()})
	}
	if _, err := readKeys(p.To.Keys); err != nil {
		errs = append(errs, message.FieldError{Field: "to.keys", Problem: strings.TrimPrefix(err.Error(), "its ")})
	}
	body, err := encode(p, message.ID{})
	if err != nil {
		errs = append(errs, message.FieldError{Field: "data", Problem: "can't be encoded"})
	}
	if len(body) > MaxPayload {
		field := "data"
		if len(p.Data) == 0 {
			field = "notification"
		}
		errs = append(errs, message.FieldError{Field: field, Problem: fmt.Sprintf(
			"notification and data are %d bytes together as JSON, Web Push takes at most %d", len(body), MaxPayload)})
	}
	if len(errs) > 0 {
		return errs
	}
	return nil
}
