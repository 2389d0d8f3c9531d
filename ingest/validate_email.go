package ingest

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/stormpost/stormpost/internal/mail"
	"github.com/stormpost/stormpost/internal/message"
)

const (
	maxSubject     = 998 // RFC 5322 §2.1.1, before any encoding
	maxReplyTo     = 10
	maxHeaders     = 50
	maxHeaderName  = 76
	maxHeaderLine  = 998
	maxAttachments = 20
	maxFilename    = 255
	maxMIMEField   = 255
)

func validateEmail(p *problems, e *message.Email, domains []string) {
	validateFrom(p, e.From, domains)
	validateRecipients(p, e)
	if len(e.ReplyTo) > maxReplyTo {
		p.add("reply_to", "has %d mailboxes, want at most %d", len(e.ReplyTo), maxReplyTo)
	}
	for i, s := range e.ReplyTo[:min(len(e.ReplyTo), maxReplyTo)] {
		if _, err := parseMailbox(s); err != nil {
			p.add(fmt.Sprintf("reply_to[%d]", i), "%v", err)
		}
	}
	validateText(p, "subject", e.Subject, maxSubject)
	validateBody(p, "text", e.Text)
	validateBody(p, "html", e.HTML)
	if e.Text == "" && e.HTML == "" && len(e.Attachments) == 0 {
		p.add("text", "want text, html or attachments")
	}
	validateHeaders(p, e.Headers)
	validateAttachments(p, e.Attachments)
	size := len(e.Text) + len(e.HTML)
	for _, a := range e.Attachments {
		size += len(a.Content)
	}
	if size > MaxContent {
		p.add("attachments", "text, html and attachments have %d bytes, want at most %d", size, MaxContent)
	}
}

func validateFrom(p *problems, from string, domains []string) {
	if from == "" {
		p.add("from", "is required")
		return
	}
	a, err := parseMailbox(from)
	if err != nil {
		p.add("from", "%v", err)
		return
	}
	if !mayUse(domains, a.domain) {
		p.add("from", "%s is not a sender domain of this tenant", a.domain)
	}
}

func validateRecipients(p *problems, e *message.Email) {
	count := len(e.To) + len(e.Cc) + len(e.Bcc)
	if count == 0 {
		p.add("to", "want at least one recipient in to, cc or bcc")
		return
	}
	if count > message.MaxRecipients {
		p.add("to", "has %d recipients with cc and bcc, want at most %d", count, message.MaxRecipients)
		return
	}
	seen := make(map[address]string, count)
	for _, list := range []struct {
		name string
		all  []string
	}{{"to", e.To}, {"cc", e.Cc}, {"bcc", e.Bcc}} {
		for i, s := range list.all {
			field := fmt.Sprintf("%s[%d]", list.name, i)
			a, err := parseMailbox(s)
			if err != nil {
				p.add(field, "%v", err)
			} else if first, repeated := seen[a]; repeated {
				p.add(field, "repeats %s", first)
			} else {
				seen[a] = field
			}
		}
	}
}

func validateBody(p *problems, field, body string) {
	if !utf8.ValidString(body) {
		p.add(field, "is not valid UTF-8")
	} else if strings.IndexByte(body, 0) >= 0 {
		p.add(field, "has a NUL character")
	}
}

func validateHeaders(p *problems, headers map[string]string) {
	if len(headers) > maxHeaders {
		p.add("headers", "has %d headers, want at most %d", len(headers), maxHeaders)
		return
	}
	seen := make(map[string]bool, len(headers))
	for _, name := range sortedKeys(headers) {
		field := MemberPath("headers", name)
		value := headers[name]
		lower := strings.ToLower(name)
		switch {
		case name == "" || len(name) > maxHeaderName || !only(name, isFtext):
			p.add(field, "is not a header name of 1 to %d characters", maxHeaderName)
			continue
		case ownHeader(lower):
			p.add(field, "is set by Stormpost or by a field of its own")
			continue
		case seen[lower]:
			p.add(field, "is repeated in another case")
			continue
		}
		seen[lower] = true
		validateText(p, field, strings.ReplaceAll(value, "\t", " "), maxHeaderLine-len(name)-len(": "))
		if strings.TrimSpace(value) == "" {
			p.add(field, "is empty")
		}
	}
	validateOneClick(p, headers)
}

// isFtext is RFC 5322 §3.6.8: printable ASCII except the colon.
func isFtext(b byte) bool { return b > ' ' && b <= '~' && b != ':' }

// ownHeader names the headers that a message can have once, from us, or that
// tell of a way it hasn't gone yet.
func ownHeader(lower string) bool {
	switch lower {
	case "from", "to", "cc", "bcc", "reply-to", "subject", "date", "message-id", "mime-version", "sender",
		"return-path", "received", "received-spf", "delivered-to", "dkim-signature", "domainkey-signature",
		"authentication-results":
		return true
	}
	for _, family := range []string{"content-", "resent-", "arc-", "x-stormpost-"} {
		if strings.HasPrefix(lower, family) {
			return true
		}
	}
	return false
}

// validateOneClick holds the pair of RFC 8058 §3.1 together.
func validateOneClick(p *problems, headers map[string]string) {
	var list, post, postName string
	for name, value := range headers {
		switch strings.ToLower(name) {
		case "list-unsubscribe":
			list = value
		case "list-unsubscribe-post":
			post, postName = value, name
		}
	}
	if postName == "" {
		return
	}
	field := MemberPath("headers", postName)
	if strings.TrimSpace(post) != "List-Unsubscribe=One-Click" {
		p.add(field, "want List-Unsubscribe=One-Click")
	}
	if !strings.Contains(strings.ToLower(list), "<https://") {
		p.add(field, "needs a List-Unsubscribe header with an https link")
	}
}

func validateAttachments(p *problems, all []message.Attachment) {
	if len(all) > maxAttachments {
		p.add("attachments", "has %d attachments, want at most %d", len(all), maxAttachments)
		return
	}
	ids := make(map[string]bool)
	for i, a := range all {
		at := fmt.Sprintf("attachments[%d].", i)
		if a.Filename == "" {
			p.add(at+"filename", "is required")
		} else if a.Filename == "." || a.Filename == ".." || strings.ContainsAny(a.Filename, `/\`) {
			p.add(at+"filename", "want a name without a path")
		} else {
			validateText(p, at+"filename", a.Filename, maxFilename)
		}
		if a.ContentType != "" {
			validateContentType(p, at+"content_type", a.ContentType)
		}
		if id := a.ContentID; id != "" {
			if len(id) > maxMIMEField || !only(id, func(b byte) bool { return isAtext(b) || b == '.' || b == '@' }) {
				p.add(at+"content_id", "want 1 to %d letters, digits and marks, without < and >", maxMIMEField)
			} else if ids[id] {
				p.add(at+"content_id", "is repeated")
			}
			ids[id] = true
		}
		if a.Content == nil {
			p.add(at+"content", "is required")
		}
	}
}

func validateContentType(p *problems, field, s string) {
	_, err := mail.MediaType(s)
	switch {
	case len(s) > maxMIMEField || !printableASCII(s) || err != nil:
		p.add(field, "want a media type of at most %d printable ASCII characters", maxMIMEField)
	case strings.HasPrefix(strings.ToLower(strings.TrimSpace(s)), "multipart/"):
		// RFC 2045 §6.4: a composite type can't be carried as base64.
		p.add(field, "multipart types can't be attached")
	}
}

// httpsURL says whether s is an absolute https link of a sane length.
func httpsURL(s string) bool {
	const limit = 2048
	u, err := url.Parse(s)
	return err == nil && len(s) <= limit && u.Scheme == "https" && u.Hostname() != "" && u.User == nil && printableASCII(s) && validPort(u.Port())
}

// validPort says whether a link with this port, or with none, can be connected to.
func validPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return port == "" || err == nil && n > 0
}
