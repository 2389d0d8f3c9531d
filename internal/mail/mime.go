package mail

import (
	"bytes"
	"encoding/base64"
	"mime"
	"mime/quotedprintable"
	"path"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/stormpost/stormpost/internal/message"
)

// content writes the MIME fields and the body:
//
//	mixed( alternative( text, related( html, inline… ) ), attachment… )
//
// leaving out every multipart that would have one part only. A part doesn't end
// its last line; whatever follows does.
func (c *composer) content(e *message.Email) error {
	var attached, inline []message.Attachment
	for _, a := range e.Attachments {
		if a.ContentID != "" && e.HTML != "" {
			inline = append(inline, a)
		} else {
			attached = append(attached, a)
		}
	}
	var parts []func() error
	if e.Text != "" || e.HTML != "" || len(attached) == 0 {
		parts = append(parts, func() error { return c.body(e, inline) })
	}
	return c.multipart("mixed", append(parts, c.files("attachment", attached)...))
}

func (c *composer) body(e *message.Email, inline []message.Attachment) error {
	var parts []func() error
	if e.Text != "" || e.HTML == "" {
		parts = append(parts, func() error { return c.text("plain", e.Text) })
	}
	if e.HTML != "" {
		parts = append(parts, func() error {
			page := func() error { return c.text("html", e.HTML) }
			return c.multipart("related", append([]func() error{page}, c.files("inline", inline)...))
		})
	}
	return c.multipart("alternative", parts)
}

// multipart writes parts as one entity; a single part stands for itself.
func (c *composer) multipart(kind string, parts []func() error) error {
	if len(parts) == 1 {
		return parts[0]()
	}
	// "=_" occurs in no quoted-printable or base64 body, and a text that
	// contains its own id can't be made: the id is a hash over the text.
	c.parts++
	// An 8bit part would have to be declared by each multipart around it.
	c.eightBit = false
	boundary := "=_" + c.id + "_" + strconv.Itoa(c.parts)
	c.buf.WriteString("Content-Type: multipart/" + kind + ";\r\n boundary=\"" + boundary + "\"\r\n\r\n")
	for i, part := range parts {
		if i > 0 {
			c.buf.WriteString("\r\n")
		}
		c.buf.WriteString("--" + boundary + "\r\n")
		if err := part(); err != nil {
			return err
		}
	}
	c.buf.WriteString("\r\n--" + boundary + "--")
	return nil
}

// shape is what decides how a text can travel.
type shape struct {
	high    bool // has bytes over 0x7f
	control bool // NUL or another control character
	escaped int  // bytes that quoted-printable makes three of
	longest int  // bytes of the longest line
}

func shapeOf(s string) (t shape) {
	line := 0
	for i := range len(s) {
		switch b := s[i]; {
		case b == '\n' || b == '\r':
			t.longest = max(t.longest, line)
			line = -1
		case b >= utf8.RuneSelf:
			t.high = true
			t.escaped++
		case b < ' ' && b != '\t' || b == 0x7f:
			t.control = true
			t.escaped++
		case b == '=':
			t.escaped++
		}
		line++
	}
	t.longest = max(t.longest, line)
	return t
}

// text writes one text part: as it is where that can be, else encoded.
func (c *composer) text(subtype, s string) error {
	t := shapeOf(s)
	encoding := "quoted-printable"
	switch {
	case !t.control && t.longest <= maxLine && !t.high:
		encoding = "7bit"
	case !t.control && t.longest <= maxLine && c.eightBit && utf8.ValidString(s):
		encoding = "8bit"
		c.wrote8 = true
	case t.escaped > len(s)/4:
		encoding = "base64" // shorter than quoted-printable from here on
	}
	c.buf.WriteString("Content-Type: text/" + subtype + "; charset=utf-8\r\nContent-Transfer-Encoding: " + encoding + "\r\n\r\n")
	switch encoding {
	case "quoted-printable":
		w := quotedprintable.NewWriter(c.buf)
		if _, err := w.Write([]byte(s)); err != nil {
			return err
		}
		return w.Close()
	case "base64":
		// RFC 2045 §6.8: line ends are made CRLF before.
		var b bytes.Buffer
		writeLines(&b, []byte(s))
		writeBase64(c.buf, b.Bytes())
	default:
		writeLines(c.buf, []byte(s))
	}
	return nil
}

// writeLines writes s with every line end as CRLF.
func writeLines(buf *bytes.Buffer, s []byte) {
	for {
		line, rest, ended := CutLine(s)
		buf.Write(line)
		if !ended {
			return
		}
		buf.WriteString("\r\n")
		s = rest
	}
}

// writeBase64 writes b in lines of 76 characters.
func writeBase64(buf *bytes.Buffer, b []byte) {
	const line = 76 / 4 * 3
	buf.Grow(base64.StdEncoding.EncodedLen(len(b)) + 2*(len(b)/line+1))
	for len(b) > 0 {
		n := min(line, len(b))
		buf.Write(base64.StdEncoding.AppendEncode(buf.AvailableBuffer(), b[:n]))
		if b = b[n:]; len(b) > 0 {
			buf.WriteString("\r\n")
		}
	}
}

func (c *composer) files(kind string, all []message.Attachment) []func() error {
	parts := make([]func() error, len(all))
	for i, a := range all {
		parts[i] = func() error { return c.file(kind, a) }
	}
	return parts
}

// file writes one attachment, its bytes untouched.
func (c *composer) file(kind string, a message.Attachment) error {
	if err := checkFile(a); err != nil {
		return err
	}
	contentType, err := typeOf(a)
	if err != nil {
		return err
	}
	c.buf.WriteString("Content-Type: " + contentType + "\r\nContent-Transfer-Encoding: base64\r\n")
	// One parameter at most, so that the first "; " is the one before it.
	line := strings.Replace(disposition(kind, a.Filename), "; ", ";\r\n ", 1)
	if line == "" || len(line) > maxLine {
		return badContent("attachment filename", "doesn't fit a header")
	}
	c.buf.WriteString("Content-Disposition: " + line + "\r\n")
	if a.ContentID != "" {
		c.buf.WriteString("Content-ID: <" + a.ContentID + ">\r\n")
	}
	c.buf.WriteString("\r\n")
	writeBase64(c.buf, a.Content)
	return nil
}

// checkFile refuses names that could break out of a header.
func checkFile(a message.Attachment) error {
	if err := clean("attachment filename", a.Filename); err != nil || a.ContentID == "" {
		return err
	}
	if err := clean("attachment content_id", a.ContentID); err != nil {
		return err
	}
	if strings.ContainsAny(a.ContentID, "<> \t") || !IsASCII(a.ContentID) || len(a.ContentID) > 255 {
		return badContent("attachment content_id", "is not an id")
	}
	return nil
}

const opaque = "application/octet-stream"

// typeOf is the content type to declare for a.
func typeOf(a message.Attachment) (string, error) {
	given := a.ContentType
	if given == "" {
		given = mime.TypeByExtension(path.Ext(a.Filename))
	}
	if given == "" {
		return opaque, nil
	}
	return MediaType(given)
}

// MediaType is the content type to declare for a file that is said to be given.
// Errors are *Unfit.
func MediaType(given string) (string, error) {
	if err := clean("attachment content_type", given); err != nil {
		return "", err
	}
	kind, params, err := mime.ParseMediaType(given)
	if err != nil || strings.Count(kind, "/") != 1 {
		return "", badContent("attachment content_type", "is not a media type")
	}
	major, _, _ := strings.Cut(kind, "/")
	if major == "multipart" || major == "message" {
		// RFC 2045 §6.4 forbids base64 for both, and the bytes must stay as they
		// are. The filename still tells what they hold.
		return opaque, nil
	}
	formatted := mime.FormatMediaType(kind, params)
	if formatted == "" || len(formatted) > maxLine-len("Content-Type: ") {
		return "", badContent("attachment content_type", "doesn't fit a header")
	}
	return formatted, nil
}
