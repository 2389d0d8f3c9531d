package smtp

import (
	"bytes"
	"strconv"
	"strings"
	"testing"

	"github.com/stormpost/stormpost/internal/message"
)

// laxEnds is what one server or another was known to take for the end of a
// message (CVE-2023-51764, -51765, -51766).
var laxEnds = []string{
	"\r\n.\r\n", "\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r", "\r.\r\n", "\r\n.\r", "\r\n\x00.\r\n", "\r\x00\n.\r\n",
}

// smuggles are bodies that hold a second message for somebody.
func smuggles() (all []string) {
	for _, end := range append([]string{"\r\n..\r\n", "\r\n.", "\n.", "\r.", "\r\n.\r\n.\r\n", "\n\r.\n\r"}, laxEnds...) {
		all = append(all, "before"+end+"MAIL FROM:<evil@evil.example>\r\nRCPT TO:<victim@reader.example>\r\nDATA\r\nevil"+end+"after",
			end[len(end)-2:]+end+"x", strings.TrimLeft(end, "\r\n")+"QUIT\r\n")
	}
	return all
}

// normal is s with CRLF line ends, and its last line ended.
func normal(s string) string {
	s = strings.NewReplacer("\r\n", "\r\n", "\r", "\r\n", "\n", "\r\n").Replace(s)
	if !strings.HasSuffix(s, "\r\n") {
		s += "\r\n"
	}
	return s
}

func TestSmuggling(t *testing.T) {
	for _, server := range []struct {
		name string
		eod  []string
	}{{"strict", nil}, {"lax", laxEnds}} {
		t.Run(server.name, func(t *testing.T) {
			srv := startServer(t, script{offers: everything, eod: server.eod})
			p := newProvider(t, srv, func(c *Config) { c.Connections = 1 })
			for i, text := range smuggles() {
				env := envelopeOf(&message.Email{From: "a@sender.example", To: []string{"b@reader.example"}, Text: text})
				if r := send(t, p, env); r.Outcome != message.Sent {
					t.Fatalf("%q: %+v", text, r)
				}
				got := srv.got()
				if len(got) != i+1 {
					t.Fatalf("%q arrived as %d messages", text, len(got)-i)
				}
				if strings.Contains(text, "\x00") {
					continue // encoded; the builder's tests decode it
				}
				_, body, _ := bytes.Cut(got[i], []byte("\r\n\r\n"))
				if string(body) != normal(text) {
					t.Errorf("%q arrived as %q", text, body)
				}
			}
			if n := srv.count("MAIL"); n != len(smuggles()) {
				t.Errorf("server saw %d MAIL commands, want %d", n, len(smuggles()))
			}
			if n := srv.connections(); n != 1 {
				t.Errorf("%d connections", n)
			}
		})
	}
}

// Nothing of a message can become a command or a header field.
func TestInjection(t *testing.T) {
	srv := startServer(t, script{offers: everything})
	p := newProvider(t, srv, nil)
	for name, change := range map[string]func(*message.Envelope){
		"recipient":          func(v *message.Envelope) { v.Recipient = "b@reader.example>\r\nRCPT TO:<evil@evil.example" },
		"recipient, quoted":  func(v *message.Envelope) { v.Recipient = "\"b> SIZE=1\\\r\\\nx\"@reader.example" },
		"recipient, literal": func(v *message.Envelope) { v.Recipient = "b@[127.0.0.1]" },
		"recipient, empty":   func(v *message.Envelope) { v.Recipient = "" },
		"recipient, two":     func(v *message.Envelope) { v.Recipient = "b@reader.example, c@reader.example" },
		"recipient, space":   func(v *message.Envelope) { v.Recipient = "\"b c\"@reader.example" },
		"from":               func(v *message.Envelope) { v.Content.Email.From = "a@sender.example\r\nBcc: evil@evil.example" },
		"from, name":         func(v *message.Envelope) { v.Content.Email.From = "\"A\r\nBcc: e@evil.example\" <a@sender.example>" },
		"from, word":         func(v *message.Envelope) { v.Content.Email.From = "=?utf-8?q?A=0D=0AX:_y?= <a@sender.example>" },
		"to":                 func(v *message.Envelope) { v.Content.Email.To[0] = "b@reader.example\nX: y" },
		"cc":                 func(v *message.Envelope) { v.Content.Email.Cc = []string{"b\r@reader.example"} },
		"reply_to":           func(v *message.Envelope) { v.Content.Email.ReplyTo = []string{"b\x00@reader.example"} },
		"subject":            func(v *message.Envelope) { v.Content.Email.Subject = "x\r\nBcc: evil@evil.example" },
		"subject, CR":        func(v *message.Envelope) { v.Content.Email.Subject = "x\rBcc: evil@evil.example" },
		"subject, U+2028":    func(v *message.Envelope) { v.Content.Email.Subject = "x\u2028y" },
		"subject, U+0085":    func(v *message.Envelope) { v.Content.Email.Subject = "x\u0085y" },
		"subject, bytes":     func(v *message.Envelope) { v.Content.Email.Subject = "x\xff" },
		"header value":       func(v *message.Envelope) { v.Content.Email.Headers = map[string]string{"X-A": "b\r\nX-C: d"} },
		"header name":        func(v *message.Envelope) { v.Content.Email.Headers = map[string]string{"X-A: b\r\nX-C": "d"} },
		"header name, own":   func(v *message.Envelope) { v.Content.Email.Headers = map[string]string{"bCC": "evil@evil.example"} },
		"header name, mime":  func(v *message.Envelope) { v.Content.Email.Headers = map[string]string{"Content-Type": "text/html"} },
		"header too long": func(v *message.Envelope) {
			v.Content.Email.Headers = map[string]string{"X-A": strings.Repeat("x", 2000)}
		},
		"filename": func(v *message.Envelope) {
			v.Content.Email.Attachments = []message.Attachment{{Filename: "a\"\r\nX: y", Content: []byte("x")}}
		},
		"content_id": func(v *message.Envelope) {
			v.Content.Email.Attachments = []message.Attachment{{Filename: "a", ContentID: "x>\r\nX: y", Content: []byte("x")}}
		},
		"content_id, mark": func(v *message.Envelope) {
			v.Content.Email.Attachments = []message.Attachment{{Filename: "a", ContentID: "x> <y", Content: []byte("x")}}
		},
		"content_type": func(v *message.Envelope) {
			v.Content.Email.Attachments = []message.Attachment{{Filename: "a", ContentType: "text/plain\r\nX: y", Content: []byte("x")}}
		},
	} {
		env := envelope(1)
		change(env)
		slot := reserve(t, p)
		r := slot.Send(t.Context(), env, func() error { t.Errorf("%s: last was called", name); return nil })
		slot.Release()
		if r.Outcome != message.Rejected || r.Reply == "" || r.Code == "" {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if srv.count("MAIL") > 0 {
		t.Errorf("server saw %q", srv.lines())
	}
}

func TestExtensions(t *testing.T) {
	email := func(from, to, text string) *message.Envelope {
		return envelopeOf(&message.Email{From: from, To: []string{to}, Text: text})
	}
	ascii, high := "plain", "Grüße, Zoë"
	for _, c := range []struct {
		name   string
		offers []string
		env    *message.Envelope
		mail   string // what follows MAIL FROM:; empty: Rejected
		rcpt   string
		code   string
	}{
		{"none", nil, email("a@s.example", "b@r.example", ascii), "<a@s.example>", "<b@r.example>", ""},
		{"size", []string{"SIZE"}, email("a@s.example", "b@r.example", ascii), "<a@s.example> SIZE=247", "<b@r.example>", ""},
		{"too large", []string{"SIZE 200"}, email("a@s.example", "b@r.example", ascii), "", "", "5.3.4"},
		{"8bit, offered", []string{"8BITMIME"}, email("a@s.example", "b@r.example", high), "<a@s.example> BODY=8BITMIME", "<b@r.example>", ""},
		{"8bit, not needed", []string{"8BITMIME"}, email("a@s.example", "b@r.example", ascii), "<a@s.example>", "<b@r.example>", ""},
		{"8bit, not offered", nil, email("a@s.example", "b@r.example", high), "<a@s.example>", "<b@r.example>", ""},
		{"utf8, offered", everything[:3], email("a@s.example", "Zoë <zoë@r.example>", ascii), "<a@s.example> BODY=8BITMIME SMTPUTF8", "<zoë@r.example>", ""},
		{"utf8 sender", everything[:3], email("zoë@s.example", "b@r.example", ascii), "<zoë@s.example> BODY=8BITMIME SMTPUTF8", "<b@r.example>", ""},
		{"utf8, not offered", []string{"8BITMIME"}, email("a@s.example", "zoë@r.example", ascii), "", "", "5.6.7"},
		{"utf8 in a header, not offered", nil, envelopeOf(&message.Email{From: "a@s.example", To: []string{"b@r.example"}, ReplyTo: []string{"zoë@s.example"}}), "", "", "5.6.7"},
		{"IDN", nil, email("a@Bücher.example", "b@bücher.example", ascii), "<a@xn--bcher-kva.example>", "<b@xn--bcher-kva.example>", ""},
		{"display names", nil, email("\"Zoë, A.\" <A@S.example>", "B <b@R.example>", ascii), "<A@s.example>", "<b@r.example>", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv := startServer(t, script{offers: c.offers})
			p := newProvider(t, srv, nil)
			r := send(t, p, c.env)
			if c.mail == "" {
				if r.Outcome != message.Rejected || r.Code != c.code || srv.count("MAIL") > 0 {
					t.Errorf("%+v", r)
				}
				return
			}
			if r.Outcome != message.Sent {
				t.Fatalf("%+v", r)
			}
			if got := srv.envelope[0]; got[0] != "MAIL FROM:"+c.mail || got[1] != "RCPT TO:"+c.rcpt {
				t.Errorf("envelope is %q", got)
			}
			eight := bytes.ContainsFunc(srv.got()[0], func(r rune) bool { return r > 0x7f })
			if eight != strings.Contains(c.mail, "8BITMIME") {
				t.Errorf("message has 8-bit bytes: %v", eight)
			}
		})
	}
}

// SIZE is the number of bytes that arrive, without the dots of stuffing.
func TestSizeIsExact(t *testing.T) {
	srv := startServer(t, script{offers: everything})
	p := newProvider(t, srv, nil)
	env := envelope(1)
	env.Content.Email.Text = ".\n..\n.x\n"
	send(t, p, env)
	want := "MAIL FROM:<shop@sender.example> SIZE="
	line := srv.envelope[0][0]
	if line != want+strconv.Itoa(len(srv.got()[0])) {
		t.Errorf("%s for %d bytes", line, len(srv.got()[0]))
	}
}

func FuzzStuff(f *testing.F) {
	for _, s := range smuggles() {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		var buf bytes.Buffer
		stuff(&buf, msg)
		wire := append([]byte("\r\n"), buf.Bytes()...)
		for _, end := range laxEnds {
			if !strings.Contains(end, "\x00") && bytes.Contains(wire, []byte(end)) {
				t.Errorf("%q is in %q", end, wire)
			}
		}
		back := bytes.ReplaceAll(wire, []byte("\r\n."), []byte("\r\n"))[2:]
		want := ""
		if len(msg) > 0 {
			want = normal(string(msg))
		}
		if string(back) != want {
			t.Errorf("%q came back as %q", msg, back)
		}
	})
}
