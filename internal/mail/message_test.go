package mail

import (
	"bytes"
	"encoding/base64"
	"flag"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gomessage "github.com/emersion/go-message"
	_ "github.com/emersion/go-message/charset"

	"github.com/stormpost/stormpost/internal/message"
)

var update = flag.Bool("update", false, "write the golden files anew")

var sentAt = time.Date(2026, 3, 1, 12, 0, 0, 0, time.FixedZone("", 3600))

func envelopeOf(e *message.Email) *message.Envelope {
	c := &message.Content{Email: e}
	b, err := c.Encode()
	if err != nil {
		panic(err)
	}
	id := message.SubmissionID(message.HashKey(1, "key"), message.FingerprintOf(b)).Message(0)
	return &message.Envelope{ID: id, Attempt: 1, Tenant: 1, Recipient: c.Recipients()[0], Content: c}
}

// composed is env's message, or fails the test.
func composed(t testing.TB, env *message.Envelope, eightBit bool) (Draft, []byte) {
	t.Helper()
	d, err := NewDraft(env)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := Compose(&buf, env, &d, sentAt, eightBit); err != nil {
		t.Fatal(err)
	}
	return d, buf.Bytes()
}

// checkWire is what holds for every message.
func checkWire(t testing.TB, b []byte, eightBit bool) {
	t.Helper()
	if !bytes.HasSuffix(b, []byte("\r\n")) {
		t.Error("the last line isn't ended")
	}
	head, _, ok := bytes.Cut(b, []byte("\r\n\r\n"))
	if !ok {
		t.Error("no header")
	}
	for line := range bytes.SplitSeq(b, []byte("\r\n")) {
		if len(line) > 998 {
			t.Errorf("a line has %d bytes", len(line))
		}
		if bytes.ContainsAny(line, "\r\n\x00") {
			t.Errorf("bare CR, LF or NUL in %q", line)
		}
	}
	for line := range bytes.SplitSeq(head, []byte("\r\n")) {
		if len(bytes.Trim(line, " \t")) == 0 {
			t.Errorf("a header line is blank: %q", head)
		}
	}
	if !eightBit && bytes.ContainsFunc(b, func(r rune) bool { return r > 0x7f }) {
		t.Error("8-bit bytes")
	}
}

var goldens = map[string]message.Email{
	"text": {
		From: "Shop <shop@sender.example>", To: []string{"ann@reader.example"}, Subject: "Your code",
		Text: "Your code is 123456.\n.\nFrom us.\n",
	},
	"empty": {From: "shop@sender.example", Bcc: []string{"ann@reader.example"}},
	"international": {
		From: "\"Bücher, \\\"Läden\\\"\" <shop@bücher.example>", To: []string{"Åsa Öberg <asa@reader.example>", "plain@reader.example"},
		Cc: []string{"\"Comma, Here\" <c@reader.example>"}, Bcc: []string{"secret@reader.example"},
		ReplyTo: []string{"Hilfe für alle die ein Anliegen mit vielen Wörtern haben <help@bücher.example>"},
		Subject: "Ihre Bestellung wurde versandt – größere Sendungen kommen später, 追跡番号は次のとおりです 📦",
		Text:    "Grüße aus Köln.\r\n",
	},
	"alternative": {
		From: "shop@sender.example", To: []string{"ann@reader.example"}, Subject: "=?utf-8?q?not_a_word?=",
		Text: "Hello\rthere\n", HTML: "<p>Hello\n" + strings.Repeat("<b>x</b>", 200) + "</p>",
		Headers: map[string]string{
			"X-Campaign":            "spring sale for everybody who bought something in the last twelve months or so",
			"List-Unsubscribe":      "<mailto:unsubscribe@sender.example?subject=unsubscribe>, <https://sender.example/unsubscribe/0123456789abcdef>",
			"List-Unsubscribe-Post": "List-Unsubscribe=One-Click", "X-Note": "größer",
		},
	},
	"everything": {
		From: "shop@sender.example", To: []string{"ann@reader.example"}, Subject: "Invoice",
		Text: "See attached.", HTML: `<img src="cid:logo@shop">`,
		Attachments: []message.Attachment{
			{Filename: "invoice.bin", Content: bytes.Repeat([]byte{0, 1, 2, 0xff}, 30)},
			{Filename: "Rechnung März; \"2026\".pdf", ContentType: "application/pdf", Content: []byte("%PDF-1.7")},
			{Filename: "logo.png", ContentType: "image/png", ContentID: "logo@shop", Content: []byte("\x89PNG")},
			{Filename: "invite.ics", ContentType: "text/calendar; method=REQUEST; charset=utf-8", Content: []byte("BEGIN:VCALENDAR\r\n")},
			{Filename: "forwarded.eml", ContentType: "message/rfc822", Content: []byte("Subject: x\r\n\r\n")},
		},
	},
	"files only": {
		From: "shop@sender.example", To: []string{"ann@reader.example"},
		Attachments: []message.Attachment{{Filename: "a.csv", ContentType: "text/csv", ContentID: "x", Content: []byte("a;b\n")}},
	},
}

func TestGolden(t *testing.T) {
	for name, e := range goldens {
		t.Run(name, func(t *testing.T) {
			env := envelopeOf(&e)
			env.ID = message.ID{0: 1, 23: 1} // one that doesn't hang on how content is hashed
			_, got := composed(t, env, name == "international")
			checkWire(t, got, name == "international")
			if bytes.Contains(got, []byte("secret@")) {
				t.Error("a Bcc recipient is named")
			}
			path := filepath.Join("testdata", strings.ReplaceAll(name, " ", "_")+".eml")
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// leaf is one part of a message that isn't a multipart, decoded.
type leaf struct{ contentType, disposition, id, body string }

// leaves reads a message back by net/mail and mime/multipart.
func leaves(t testing.TB, b []byte) (mail.Header, []leaf) {
	t.Helper()
	m, err := mail.ReadMessage(bytes.NewReader(b))
	if err != nil {
		t.Fatalf("net/mail: %v\n%s", err, b)
	}
	var all []leaf
	var walk func(get func(string) string, body io.Reader)
	walk = func(get func(string) string, body io.Reader) {
		kind, params, err := mime.ParseMediaType(get("Content-Type"))
		if err != nil {
			t.Fatalf("content type %q: %v", get("Content-Type"), err)
		}
		if strings.HasPrefix(kind, "multipart/") {
			for r := multipart.NewReader(body, params["boundary"]); ; {
				p, err := r.NextRawPart()
				if err == io.EOF {
					return
				}
				if err != nil {
					t.Fatalf("multipart: %v\n%s", err, b)
				}
				walk(p.Header.Get, p)
			}
		}
		switch get("Content-Transfer-Encoding") {
		case "quoted-printable":
			body = quotedprintable.NewReader(body)
		case "base64":
			body = base64.NewDecoder(base64.StdEncoding, body)
		}
		text, err := io.ReadAll(body)
		if err != nil {
			t.Fatalf("body: %v\n%s", err, b)
		}
		all = append(all, leaf{get("Content-Type"), get("Content-Disposition"), get("Content-ID"), string(text)})
	}
	walk(m.Header.Get, m.Body)
	return m.Header, all
}

func TestStructure(t *testing.T) {
	e := goldens["everything"]
	_, b := composed(t, envelopeOf(&e), false)
	h, parts := leaves(t, b)
	if got := h.Get("Message-Id"); got != "<"+envelopeOf(&e).ID.String()+"@sender.example>" {
		t.Errorf("Message-ID is %s", got)
	}
	if date, err := h.Date(); err != nil || !date.Equal(sentAt) {
		t.Errorf("Date: %v, %v", date, err)
	}
	if len(parts) != 7 {
		t.Fatalf("%d parts: %q", len(parts), parts)
	}
	if parts[0].body != e.Text || parts[1].body != e.HTML || parts[2].id != "<logo@shop>" {
		t.Errorf("parts: %q", parts[:3])
	}
	for i, a := range []int{2, 0, 1, 3, 4} {
		if parts[2+i].body != string(e.Attachments[a].Content) {
			t.Errorf("attachment %d is %q", a, parts[2+i].body)
		}
		_, params, err := mime.ParseMediaType(parts[2+i].disposition)
		if err != nil || params["filename"] != e.Attachments[a].Filename {
			t.Errorf("attachment %d is called %q, %v", a, params, err)
		}
	}
}

// A message's second attempt says the same, but for its date.
func TestMessageIsStable(t *testing.T) {
	e := goldens["everything"]
	env := envelopeOf(&e)
	_, first := composed(t, env, false)
	env.Attempt, env.Position = 2, 99
	if _, second := composed(t, env, false); !bytes.Equal(first, second) {
		t.Error("the second attempt differs")
	}
}

// A part of a multipart is never 8bit, since the multiparts around it would
// have to say so.
func TestMultipartIsASCII(t *testing.T) {
	d, b := composed(t, envelopeOf(&message.Email{From: "a@sender.example", To: []string{"b@reader.example"}, Text: "Grüße, Zoë", HTML: strings.Repeat("追跡番号", 9)}), true)
	checkWire(t, b, false)
	if _, parts := leaves(t, b); d.EightBit || len(parts) != 2 || parts[0].body != "Grüße, Zoë" || parts[1].body != strings.Repeat("追跡番号", 9) {
		t.Errorf("8-bit: %v, parts: %q", d.EightBit, parts)
	}
}

func TestWriteHeader(t *testing.T) {
	for in, want := range map[string]string{
		"a":    "X: a\r\n",
		" a  ": "X: a\r\n",
		strings.Repeat("x", 70) + "  " + strings.Repeat("y", 70): "X: " + strings.Repeat("x", 70) + "\r\n  " + strings.Repeat("y", 70) + "\r\n",
		strings.Repeat("x", 995):                                 "X: " + strings.Repeat("x", 995) + "\r\n",
		strings.Repeat("x", 996):                                 "",
		"a " + strings.Repeat("x", 998):                          "",
	} {
		var buf bytes.Buffer
		err := writeHeader(&buf, "X", in)
		if (err != nil) != (want == "") || err == nil && buf.String() != want {
			t.Errorf("%q: %q, %v", in, buf.String(), err)
		}
	}
}

// Text without a blank that is too long for a line, or would be in quotes, is
// encoded, and read back as it was.
func TestLongWords(t *testing.T) {
	for _, n := range []int{483, 484, 989, 990, 998} {
		subject, name := strings.Repeat("S", n), strings.Repeat(`"`, n)
		e := message.Email{From: "a@sender.example", To: []string{"b@reader.example"}, Subject: subject, Text: "t"}
		env := envelopeOf(&e)
		d, err := NewDraft(env)
		if err != nil {
			t.Fatal(err)
		}
		d.From.Name = name
		var buf bytes.Buffer
		if err := Compose(&buf, env, &d, sentAt, false); err != nil {
			t.Errorf("%d: %v", n, err)
			continue
		}
		checkWire(t, buf.Bytes(), false)
		h, _ := leaves(t, buf.Bytes())
		var dec mime.WordDecoder
		if got, err := dec.DecodeHeader(h.Get("Subject")); err != nil || got != subject {
			t.Errorf("%d: subject came back as %q, %v", n, got, err)
		}
		if got := strings.Contains(h.Get("Subject"), "=?"); got != (n > 989) {
			t.Errorf("%d: the subject is encoded: %v", n, got)
		}
		if a, err := h.AddressList("From"); err != nil || a[0].Name != name {
			t.Errorf("%d: the name came back as %v, %v", n, a, err)
		}
	}
}

// A text is never much longer encoded than it was.
func TestEncodedLength(t *testing.T) {
	for _, s := range []string{"=", "\x7f", "ü", "x", "x=", "xxxx="} {
		e := message.Email{From: "a@sender.example", To: []string{"b@reader.example"}, Text: strings.Repeat(s, 60_000/len(s))}
		if _, b := composed(t, envelopeOf(&e), false); len(b) > 2*60_000 {
			t.Errorf("60000 bytes of %q became %d", s, len(b))
		}
	}
}

// What Mailbox writes reads back as what it was.
func TestMailbox(t *testing.T) {
	for _, name := range []string{"", "Jo", "Doe, Jo", `a"b\c`, "Zoë", "=?x?q?y?=", "=?utf-8?q?x?="} {
		a := Address{Name: name, Local: "a", Host: "b.example"}
		if got, err := ParseMailbox("to", a.Mailbox()); err != nil || got != a {
			t.Errorf("%q is written as %s, read as %+v, %v", name, a.Mailbox(), got, err)
		}
	}
}

func FuzzCompose(f *testing.F) {
	f.Add("Zoë <a@b.example>", "s", "text\r.\n", "<p>", "X-A", "value", "file.pdf", "text/plain", "cid", []byte("x"), true)
	f.Add("a@b.example", "=?utf-8?q?x?=", "", "", "List-Unsubscribe", "<https://x.example>", "ü\"\\;", "", "", []byte{}, false)
	f.Fuzz(func(t *testing.T, from, subject, text, html, name, value, file, kind, cid string, content []byte, eightBit bool) {
		env := envelopeOf(&message.Email{
			From: from, To: []string{from, "b@reader.example"}, Subject: subject, Text: text, HTML: html, Headers: map[string]string{name: value},
			Attachments: []message.Attachment{{Filename: file, ContentType: kind, ContentID: cid, Content: content}},
		})
		d, err := NewDraft(env)
		if err != nil {
			return
		}
		var buf bytes.Buffer
		if Compose(&buf, env, &d, sentAt, eightBit) != nil {
			return
		}
		b := buf.Bytes()
		checkWire(t, b, d.EightBit)
		h, parts := leaves(t, b)
		var dec mime.WordDecoder
		if got, err := dec.DecodeHeader(h.Get("Subject")); err != nil || got != strings.Trim(subject, " \t") {
			t.Errorf("subject %q came back as %q, %v", subject, got, err)
		}
		if a, err := h.AddressList("From"); err != nil || len(a) != 1 || a[0].Address != d.From.Spec() {
			t.Errorf("from %q came back as %v, %v", from, a, err)
		}
		if file := parts[len(parts)-1]; file.body != string(content) {
			t.Errorf("attachment came back as %q", file.body)
		}
		i := 0
		for _, want := range []string{text, html} {
			if want == "" {
				continue
			}
			want = strings.NewReplacer("\r\n", "\r\n", "\r", "\r\n", "\n", "\r\n").Replace(want)
			if i >= len(parts) || parts[i].body != want {
				t.Errorf("%q came back in %q", want, parts)
			}
			i++
		}
		entity, err := gomessage.Read(bytes.NewReader(b))
		if err != nil && !gomessage.IsUnknownCharset(err) && !gomessage.IsUnknownEncoding(err) {
			t.Fatalf("go-message: %v\n%s", err, b)
		}
		count := 0
		err = entity.Walk(func(_ []int, _ *gomessage.Entity, err error) error {
			count++
			if gomessage.IsUnknownCharset(err) {
				return nil
			}
			return err
		})
		if err != nil || count < len(parts) {
			t.Errorf("go-message: %d entities, %v", count, err)
		}
	})
}
