package ingest

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/stormpost/stormpost/internal/message"
)

// Limits of a request, in bytes where nothing else is said.
const (
	MaxProblems = 50 // that one answer names
	MaxContent  = 10 << 20
	maxKey      = 255
	maxStream   = 64
	maxTags     = 20
	maxTag      = 64
)

// problems gathers what is wrong with a request, up to MaxProblems.
type problems struct{ list message.FieldErrors }

func (p *problems) add(field, format string, args ...any) {
	if len(p.list) < MaxProblems {
		p.list = append(p.list, message.FieldError{Field: field, Problem: fmt.Sprintf(format, args...)})
	}
}

// validate names everything that is wrong with r. Apart, as stale, it says when
// the request is right but has expired: that alone may have become true since
// the same request was accepted.
func (s *Service) validate(r Request, now time.Time) (wrong, stale message.FieldErrors) {
	var p problems
	if r.Key != "" {
		validateKey(&p, r.Key)
	}
	if (r.Content.Email == nil) == (r.Content.Push == nil) {
		p.add("channel", "want an email or a push")
		return p.list, nil
	}
	if r.Content.Email != nil {
		validateEmail(&p, r.Content.Email, r.Principal.Domains)
		if len(p.list) == 0 && s.cfg.EmailCheck != nil {
			addChecked(&p, s.cfg.EmailCheck(r.Content.Email), "text")
		}
	} else {
		s.validatePush(&p, r.Content.Push)
	}
	options := r.Content.Options()
	validateOptions(&p, options)
	validateTimes(&p, options, now, s.cfg)
	if len(p.list) == 0 && !options.ExpiresAt.IsZero() && !options.ExpiresAt.After(now) {
		return nil, message.FieldErrors{{Field: "expires_at", Problem: "is past"}}
	}
	if !options.ExpiresAt.IsZero() && !options.ExpiresAt.After(now) {
		p.add("expires_at", "is past")
	}
	return p.list, nil
}

// Validate names everything that is wrong with r, as Submit would.
func (s *Service) Validate(r Request) message.FieldErrors {
	wrong, stale := s.validate(r, s.cfg.Now())
	return append(wrong, stale...)
}

// ValidateKey judges an idempotency key by itself: 1 to 255 printable ASCII
// characters.
func ValidateKey(key string) message.FieldErrors {
	var p problems
	validateKey(&p, key)
	return p.list
}

func validateKey(p *problems, key string) {
	if len(key) == 0 || len(key) > maxKey {
		p.add("idempotency_key", "has %d characters, want 1 to %d", len(key), maxKey)
	} else if !printableASCII(key) {
		p.add("idempotency_key", "want printable ASCII characters")
	}
}

func validateOptions(p *problems, o *message.Options) {
	if o.Class != "" {
		if _, err := message.ParseClass(o.Class); err != nil {
			p.add("class", "unknown class %s: want transactional, trigger or campaign", quote(o.Class))
		}
	}
	if o.Stream != "" && (len(o.Stream) > maxStream || !only(o.Stream, isNameByte)) {
		p.add("stream", "want 1 to %d of A–Z a–z 0–9 . _ -", maxStream)
	}
	if o.SupersedeKey != "" {
		validateText(p, "supersede_key", o.SupersedeKey, maxKey)
	}
	if len(o.Tags) > maxTags {
		p.add("tags", "has %d tags, want at most %d", len(o.Tags), maxTags)
	}
	for i, tag := range o.Tags[:min(len(o.Tags), maxTags)] {
		if len(tag) == 0 || len(tag) > maxTag || !only(tag, isTagByte) {
			p.add(fmt.Sprintf("tags[%d]", i), "want 1 to %d of A–Z a–z 0–9 . _ - : =", maxTag)
		}
	}
}

func validateTimes(p *problems, o *message.Options, now time.Time, cfg Config) {
	if o.SendAt.After(now.Add(cfg.MaxSchedule)) {
		p.add("send_at", "is more than %s ahead", days(cfg.MaxSchedule))
	}
	if o.ExpiresAt.IsZero() {
		return
	}
	if o.ExpiresAt.After(now.Add(cfg.MaxLife)) {
		p.add("expires_at", "is more than %s ahead", days(cfg.MaxLife))
	}
	if !o.SendAt.IsZero() && !o.ExpiresAt.After(o.SendAt) {
		p.add("expires_at", "is not after send_at")
	}
}

// validateText judges a short text for one line: valid UTF-8, no control
// characters, at most limit bytes.
func validateText(p *problems, field, text string, limit int) {
	switch {
	case len(text) > limit:
		p.add(field, "has %d bytes, want at most %d", len(text), limit)
	case !utf8.ValidString(text):
		p.add(field, "is not valid UTF-8")
	case strings.ContainsFunc(text, breaksLine):
		p.add(field, "has a line break or control character")
	}
}

// breaksLine finds what could end a header line, or is taken for a line's end
// somewhere on the way: control characters and Unicode's own separators.
func breaksLine(r rune) bool { return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' }

func printableASCII(s string) bool {
	return only(s, func(b byte) bool { return b >= ' ' && b <= '~' })
}

func only(s string, allowed func(byte) bool) bool {
	for i := range len(s) {
		if !allowed(s[i]) {
			return false
		}
	}
	return true
}

func isAlphanumeric(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9'
}

func isNameByte(b byte) bool { return isAlphanumeric(b) || b == '.' || b == '_' || b == '-' }

func isTagByte(b byte) bool { return isNameByte(b) || b == ':' || b == '=' }

// quote shows a client's own text back to it, cut short and escaped.
func quote(s string) string {
	const limit = 40
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return fmt.Sprintf("%q", s)
}

// MemberPath is the path of a member of the object at a path, which is empty for
// the request itself: headers.X-Foo, or headers["a\nb"] for a name that isn't
// fit to be shown. The request's own members have no name that looks like a path.
func MemberPath(object, name string) string {
	switch {
	case name == "" || len(name) > maxHeaderName || !only(name, isFtext) || object == "" && strings.ContainsAny(name, ".["):
		return fmt.Sprintf("%s[%s]", object, quote(name))
	case object == "":
		return name
	}
	return object + "." + name
}

func days(d time.Duration) string {
	if day := 24 * time.Hour; d >= day && d%day == 0 {
		return fmt.Sprintf("%d days", d/day)
	}
	return d.String()
}

func (s *Service) hasPlatform(name string) bool { return slices.Contains(s.cfg.Platforms, name) }
