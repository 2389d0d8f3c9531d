package sim

import (
	"bytes"
	"mime"
	"strings"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// RawLimit is how many bytes of a message Taken.Raw keeps.
const RawLimit = 64 << 10

// fieldLimit is how many bytes of a header field a Taken shows, so that the
// Store's tail stays small. It is RFC 5322's longest line.
const fieldLimit = 998

// Taken is one message that a simulator took for one recipient: a line of the
// Store's file.
type Taken struct {
	Channel  string `json:"channel"`  // email or push
	Provider string `json:"provider"` // smtp, ses, resend, postmark, sendgrid, fcm, apns or webpush
	From     string `json:"from"`     // the envelope's sender; for push the project, the app's topic, or VAPID's subject
	To       string `json:"to"`       // the envelope's recipient; token, /topics/NAME, condition or endpoint
	Subject  string `json:"subject"`  // decoded; for push the notification's title
	// MessageID is Stormpost's id when it can be told: the local part of an
	// email's Message-ID if message.ParseID reads it, a push's
	// data.stormpost_id. Else it is the whole Message-ID without its angle
	// brackets, or the name that the push was answered with.
	MessageID  string    `json:"message_id"`
	ReceivedAt time.Time `json:"received_at"`
	Size       int       `json:"size"` // of the whole message, in bytes
	// Raw is the message as it came, dots unstuffed, or the push's request
	// body, decrypted if it can be; the first RawLimit bytes of it. In the file it is base64.
	Raw []byte `json:"raw,omitempty"`
	// Via is how it came: RFC 3848's keyword (ESMTPSA …) or HTTP's version.
	Via string `json:"via"`
	// Conn numbers the server's connections, from 1 in each process.
	Conn uint64 `json:"conn"`
	// Reference is the provider's own name for the message, where the answer has
	// one that MessageID doesn't show.
	Reference string `json:"reference,omitempty"`
	// Key is the request's idempotency key, and Digest the SHA-256 of its body
	// in hex.
	Key    string `json:"key,omitempty"`
	Digest string `json:"digest,omitempty"`
	// Faults lists, as STEP:DO, what had misbehaved in this hand-over before
	// the message was stored.
	Faults []string `json:"faults,omitempty"`
}

// emailID is what Taken.MessageID says for a Message-ID header.
func emailID(header string) string {
	id := strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(header), "<"), ">")
	if local, _, ok := strings.Cut(id, "@"); ok {
		if _, err := message.ParseID(local); err == nil {
			return local
		}
	}
	return id
}

// subjectAndID finds the two header fields that a Taken shows. raw is a message
// or the beginning of one.
func subjectAndID(raw []byte) (subject, id string) {
	for len(raw) > 0 {
		var field []byte
		field, raw = cutField(raw)
		name, value, ok := bytes.Cut(field, []byte(":"))
		if !ok {
			return subject, id // the empty line, or no header at all
		}
		switch {
		case subject == "" && bytes.EqualFold(name, []byte("Subject")):
			subject = shorten(decodeSubject(unfold(value)))
		case id == "" && bytes.EqualFold(name, []byte("Message-ID")):
			id = shorten(emailID(unfold(value)))
		}
	}
	return subject, id
}

// cutField cuts the first header field off, with its folded lines (RFC 5322
// §2.2.3).
func cutField(raw []byte) (field, rest []byte) {
	for i := 0; ; {
		n := bytes.IndexByte(raw[i:], '\n')
		if n < 0 {
			return raw, nil
		}
		i += n + 1
		if i == len(raw) || raw[i] != ' ' && raw[i] != '\t' {
			return raw[:i], raw[i:]
		}
	}
}

func unfold(value []byte) string {
	s := strings.TrimSpace(string(value))
	if strings.IndexByte(s, '\n') < 0 {
		return s
	}
	return strings.NewReplacer("\r", "", "\n", "").Replace(s)
}

func shorten(s string) string {
	if len(s) <= fieldLimit {
		return s
	}
	return strings.ToValidUTF8(s[:fieldLimit], "")
}

func decodeSubject(s string) string {
	if !strings.Contains(s, "=?") {
		return s
	}
	if d, err := new(mime.WordDecoder).DecodeHeader(s); err == nil {
		return d
	}
	return s
}
