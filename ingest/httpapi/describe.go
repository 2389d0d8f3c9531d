package httpapi

import (
	"github.com/danielgtaylor/huma/v2"

	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/internal/message"
)

// describe documents the requests' fields, whose types live in a package that
// knows nothing of HTTP.
func (a *api) describe() {
	schemas := a.huma.OpenAPI().Components.Schemas.Map()
	for name, fields := range fieldDocs() {
		for field, doc := range fields {
			if p := schemas[name].Properties[field]; p != nil {
				p.Description = doc
			}
		}
	}
	for _, name := range []string{"Email", "EmailLine", "Push", "PushLine", "Attachment"} {
		for field, most := range fieldLimits() {
			if p := schemas[name].Properties[field]; p != nil {
				limit(p, most)
			}
		}
	}
	for _, name := range []string{"Email", "EmailLine", "EmailView", "Push", "PushLine"} {
		schemas[name].Properties["class"].Enum = []any{"transactional", "trigger", "campaign"}
	}
	for _, name := range []string{"EmailLine", "PushLine"} {
		p := schemas[name].Properties
		p["channel"].Description = "email or push; decides what the other fields may be."
		p["idempotency_key"].Description = "As the Idempotency-Key header of a single request."
	}
	schemas["EmailLine"].Properties["channel"].Enum = []any{"email"}
	schemas["PushLine"].Properties["channel"].Enum = []any{"push"}
	for _, name := range []string{"Email", "EmailLine"} {
		// A message may be to cc or bcc alone.
		schemas[name].Required = without(schemas[name].Required, "to")
	}
	for _, name := range []string{"Push", "PushLine"} {
		schemas[name].Properties["platform"].Enum = []any{"fcm", "apns", "webpush"}
	}
	// A null in place of an optional field is as if it were left out, but a
	// document that says so for each of them would be hard to read.
	for _, s := range schemas {
		notNull(s)
	}
}

func fieldDocs() map[string]map[string]string {
	options := map[string]string{
		"class":              "How urgent it is; transactional by default.",
		"stream":             "The stream that numbers it; default by default. 1 to 64 of A–Z a–z 0–9 . _ -",
		"send_at":            "Not before this time, at most 30 days ahead. A past one means at once.",
		"expires_at":         "Never after this time, at most 90 days ahead. By default an email has 3 days and a push one.",
		"supersede_key":      "Of the tenant's messages with this key, whatever their recipient and channel, only the newest is sent; older ones not yet handed over end as superseded. At most 255 bytes without control characters.",
		"bypass_suppression": "Take it also if its recipient is suppressed.",
		"tags":               "Up to 20 of 1 to 64 of A–Z a–z 0–9 . _ - : =",
	}
	email := map[string]string{
		"from":        "An RFC 5322 mailbox in one of the tenant's sender domains.",
		"to":          "RFC 5322 mailboxes: with cc and bcc 1 to 50, each address once.",
		"cc":          "As to.",
		"bcc":         "As to. Nobody else sees them.",
		"reply_to":    "Up to 10 mailboxes.",
		"subject":     "At most 998 bytes, on one line.",
		"text":        "The plain text. One of text, html and attachments is needed.",
		"html":        "The HTML.",
		"headers":     "Up to 50 further headers. Those that Stormpost sets itself are refused.",
		"attachments": "Up to 20 files. With text, html and all else the request has at most 10 MiB of JSON, so in base64 some 7.5 MiB of files.",
	}
	push := map[string]string{
		"platform":     "Whose push service it goes through.",
		"to":           "A token as a string, a topic or a subscription as an object.",
		"notification": "What is shown. One of notification and data is needed.",
		"data":         "Up to 100 strings for the app. Names that the push service reserves are refused.",
		"collapse_key": "A later message with this key replaces an earlier one that was not shown yet. At most 64 bytes.",
	}
	for field, doc := range options {
		email[field], push[field] = doc, doc
	}
	return map[string]map[string]string{
		"Email": email, "EmailLine": email, "EmailView": email, "Push": push, "PushLine": push,
		"Notification": {
			"title": "At least one of title and body is needed.",
			"body":  "The text.",
			"image": "An https link.",
		},
		"Attachment": {
			"filename":     "A name without a path, at most 255 bytes.",
			"content_type": "A media type; application/octet-stream by default.",
			"content_id":   "Makes it inline, for cid: links in the HTML.",
			"content":      "The file in base64. SMTP and SES take an empty one, Resend, Postmark and SendGrid don't.",
		},
	}
}

// fieldLimits is how much a request's fields may have: elements, members or
// characters, of which each takes a byte at least.
func fieldLimits() map[string]int {
	return map[string]int{
		"to": message.MaxRecipients, "cc": message.MaxRecipients, "bcc": message.MaxRecipients, "reply_to": 10,
		"from": 1000, "subject": 998, "text": ingest.MaxContent, "html": ingest.MaxContent, "headers": 50, "attachments": 20,
		"stream": 64, "supersede_key": 255, "tags": 20, "data": 100, "collapse_key": 64,
		"filename": 255, "content_type": 255, "content_id": 255,
	}
}

func limit(s *huma.Schema, most int) {
	switch s.Type {
	case huma.TypeArray:
		s.MaxItems = &most
	case huma.TypeObject:
		s.MaxProperties = &most
	case huma.TypeString:
		s.MaxLength = &most
	}
}

func without(all []string, name string) []string {
	var out []string
	for _, s := range all {
		if s != name {
			out = append(out, s)
		}
	}
	return out
}

func notNull(s *huma.Schema) {
	if s == nil {
		return
	}
	if s.Type == huma.TypeArray {
		s.Nullable = false
	}
	for _, p := range s.Properties {
		notNull(p)
	}
	notNull(s.Items)
}
