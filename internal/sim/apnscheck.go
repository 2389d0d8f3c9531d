package sim

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// APNs' documented limits.
const (
	apnsMaxPayload  = 4096
	apnsMaxCollapse = 64
	apnsTokenLife   = time.Hour
	apnsTokenRest   = 20 * time.Minute // between two new tokens of a connection
)

// apnsErrors are the documented reasons and their status
// (https://developer.apple.com/documentation/usernotifications/handling-notification-responses-from-apns).
var apnsErrors = map[string]int{
	"BadCollapseId": 400, "BadDeviceToken": 400, "BadExpirationDate": 400, "BadMessageId": 400, "BadPriority": 400, "BadTopic": 400,
	"DeviceTokenNotForTopic": 400, "DuplicateHeaders": 400, "IdleTimeout": 400, "InvalidPushType": 400, "MissingDeviceToken": 400,
	"MissingTopic": 400, "PayloadEmpty": 400, "TopicDisallowed": 400,
	"BadCertificate": 403, "BadCertificateEnvironment": 403, "ExpiredProviderToken": 403, "Forbidden": 403, "InvalidProviderToken": 403,
	"MissingProviderToken": 403, "UnrelatedKeyIdInToken": 403, "BadEnvironmentKeyIdInToken": 403,
	"BadPath": 404, "MethodNotAllowed": 405, "ExpiredToken": 410, "Unregistered": 410, "PayloadTooLarge": 413,
	"TooManyProviderTokenUpdates": 429, "TooManyRequests": 429, "InternalServerError": 500, "ServiceUnavailable": 503, "Shutdown": 503,
}

var (
	apnsUUID  = regexp.MustCompile(`^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$`)
	apnsTypes = []string{"alert", "background", "controls", "location", "voip", "complication", "fileprovider", "mdm", "liveactivity", "pushtotalk", "widgets"}
)

func answerAPNS(w http.ResponseWriter, status int, reason string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if reason == "" {
		return
	}
	b := map[string]any{"reason": reason}
	if status == http.StatusGone {
		b["timestamp"] = time.Now().Add(-time.Hour).UnixMilli()
	}
	_ = json.NewEncoder(w).Encode(b) // the client may have gone
}

// checkRequest is of all but the authorization and the body. It answers with the
// device token, or a reason.
func (s *APNSServer) checkRequest(r *http.Request) (token, reason string) {
	token, ok := strings.CutPrefix(r.URL.Path, "/3/device/")
	for name, values := range r.Header {
		if len(values) > 1 && strings.HasPrefix(strings.ToLower(name), "apns-") {
			return "", "DuplicateHeaders"
		}
	}
	kind, priority, h := r.Header.Get("apns-push-type"), r.Header.Get("apns-priority"), r.Header
	switch {
	case r.Method != http.MethodPost:
		return "", "MethodNotAllowed"
	case !ok:
		return "", "BadPath"
	case token == "":
		return "", "MissingDeviceToken"
	case !isHex(token) || len(token) < 64 || len(token) > 200:
		return "", "BadDeviceToken"
	case h.Get("apns-topic") == "":
		return "", "MissingTopic"
	case h.Get("apns-topic") != s.o.Topic:
		return "", "TopicDisallowed"
	case !slices.Contains(apnsTypes, kind):
		return "", "InvalidPushType"
	case !slices.Contains([]string{"", "1", "5", "10"}, priority), kind == "background" && priority != "5":
		return "", "BadPriority"
	case len(h.Get("apns-collapse-id")) > apnsMaxCollapse:
		return "", "BadCollapseId"
	case h.Get("apns-id") != "" && !apnsUUID.MatchString(h.Get("apns-id")):
		return "", "BadMessageId"
	}
	if e := h.Get("apns-expiration"); e != "" {
		if n, err := strconv.ParseInt(e, 10, 64); err != nil || n < 0 {
			return "", "BadExpirationDate"
		}
	}
	return token, ""
}

func isHex(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil
}

// authorize checks the provider token, and answers with a reason or nothing.
func (s *APNSServer) authorize(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "bearer") || token == "" {
		return "MissingProviderToken"
	}
	var header struct{ Kid string }
	var claims struct {
		Iss string
		Iat int64
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if head, _, _ := strings.Cut(token, "."); decodePart(head, &header) != nil || s.keys[header.Kid] == nil ||
		verifyES256(token, s.keys[header.Kid], &header, &claims) != nil || claims.Iss != APNSTeamID {
		return "InvalidProviderToken"
	}
	now := s.o.Clock()
	if old := now.Sub(time.Unix(claims.Iat, 0)); old > apnsTokenLife || old < -assertionSkew {
		return "ExpiredProviderToken"
	}
	conn := connOf(r).number
	last, known := s.tokens[conn]
	switch {
	case known && last.token == token:
	case known && last.keyID != header.Kid: // another key takes another connection
		return "UnrelatedKeyIdInToken"
	case known && now.Sub(last.since) < apnsTokenRest:
		return "TooManyProviderTokenUpdates"
	default:
		s.tokens[conn] = newestToken{token, header.Kid, now}
	}
	return ""
}

type apnsNotification struct{ title, id string }

// parseAPNS reads a payload, and answers with a reason for one that is refused.
func parseAPNS(body []byte) (n apnsNotification, reason string) {
	if len(body) > apnsMaxPayload {
		return n, "PayloadTooLarge"
	}
	var p struct {
		APS *struct {
			Alert            json.RawMessage `json:"alert"`
			ContentAvailable int             `json:"content-available"`
		} `json:"aps"`
		ID string `json:"stormpost_id"`
	}
	if err := json.Unmarshal(body, &p); err != nil || p.APS == nil {
		return n, "PayloadEmpty"
	}
	var alert struct{ Title string }
	if a := bytes.TrimSpace(p.APS.Alert); len(a) > 0 && a[0] == '{' && json.Unmarshal(a, &alert) != nil {
		return n, "PayloadEmpty"
	}
	return apnsNotification{alert.Title, p.ID}, ""
}
