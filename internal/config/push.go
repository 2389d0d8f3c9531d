package config

import "time"

// APNs is Apple Push Notification service; an empty Topic means none.
type APNs struct {
	Topic       string        `koanf:"topic"`       // bundle id of the app whose pushes of platform apns go to Apple; empty: none
	Key         Live          `koanf:"key"`         // content of the .p8 file that signs provider tokens, or, to replace a key together with its id, {"key_id": "KEYID", "key": "-----BEGIN PRIVATE KEY-----\n…"}; a process without the role worker needs none
	KeyID       string        `koanf:"key_id"`      // of a key that comes without its id, 10 characters
	TeamID      string        `koanf:"team_id"`     // of the developer account, 10 characters
	BaseURL     string        `koanf:"base_url"`    // another address than production's, as https://api.sandbox.push.apple.com
	CA          Secret        `koanf:"ca"`          // certificates, PEM, to trust there beside the system's: for a server of one's own
	Concurrency int           `koanf:"concurrency"` // requests under way at once, of one process
	Connections int           `koanf:"connections"` // at most, of one process; each takes many requests at a time
	Rate        float64       `koanf:"rate"`        // hand-overs a second at most, of one process; 0: no bound
	ReplyLimit  time.Duration `koanf:"reply_limit"` // how long an answer is waited for
}

// WebPush is the push services of browsers; an empty Subject means none.
type WebPush struct {
	Subject        string        `koanf:"subject"`         // where push services can reach you, mailto:ADDRESS or an https link; empty: no Web Push
	VAPIDKey       Secret        `koanf:"vapid_key"`       // private key of P-256 that subscriptions were made with, PEM or 32 bytes in base64url; a process without the role worker needs none
	ReplaceRepeats bool          `koanf:"replace_repeats"` // give each push without collapse_key a Topic of its own, so that a repeat replaces it while it is undelivered; some services keep few topics a device
	AllowPrivate   bool          `koanf:"allow_private"`   // allow endpoints in private networks and on this machine
	CA             Secret        `koanf:"ca"`              // certificates, PEM, to trust beside the system's: for a push service of one's own
	Concurrency    int           `koanf:"concurrency"`     // requests under way at once, of one process; three quarters of them to one push service
	Connections    int           `koanf:"connections"`     // to one push service at most, of one process
	Rate           float64       `koanf:"rate"`            // hand-overs a second at most, of one process; 0: no bound
	ReplyLimit     time.Duration `koanf:"reply_limit"`     // how long an answer is waited for
}

// Platforms are those of pushes that the API takes. FCM's are taken without a
// provider, too, and wait for one.
func (c *Config) Platforms() []string {
	all := []string{"fcm"}
	hook := c.Webhook.URL != "" && c.Webhook.Channel == "push"
	if c.APNs.Topic != "" || hook {
		all = append(all, "apns")
	}
	if c.WebPush.Subject != "" || hook {
		all = append(all, "webpush")
	}
	return all
}

// ProviderNames are those that attempts and holds show.
func ProviderNames() []string {
	return []string{"smtp", "ses", "resend", "postmark", "sendgrid", "fcm", "apns", "webpush", "webhook"}
}
