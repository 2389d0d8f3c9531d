package sim

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func TestSMTPTakesAMessage(t *testing.T) {
	s := startSMTP(t, SMTPOptions{})
	c := dial(t, s.Addr())
	c.want("220 localhost ESMTP")
	hello := c.do("EHLO client.example", "250-localhost")
	for _, x := range []string{"PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE 31457280", "STARTTLS", "ENHANCEDSTATUSCODES"} {
		if !strings.Contains(hello, x+"\r\n") {
			t.Errorf("EHLO lacks %s: %q", x, hello)
		}
	}
	if strings.Contains(hello, "AUTH") {
		t.Errorf("AUTH without accounts: %q", hello)
	}
	c.envelope("a@example.com", "bcc@example.com")
	c.send(mailText("Hi", "1@x") + "..stuffed\r\n.\r\n")
	c.want("250 2.0.0")
	c.do("QUIT", "221")
	c.wantEnd()

	ts := all(t, s.o.Store)
	if len(ts) != 2 || ts[0].To != "a@example.com" || ts[1].To != "bcc@example.com" {
		t.Fatalf("stored %+v", ts)
	}
	raw := mailText("Hi", "1@x") + ".stuffed\r\n"
	x := ts[1]
	if x.Channel != "email" || x.Provider != "smtp" || x.From != "from@example.com" || x.Subject != "Hi" || x.MessageID != "1@x" ||
		x.Size != len(raw) || string(x.Raw) != raw || x.Via != "ESMTP" || x.Conn != 1 || x.ReceivedAt.IsZero() {
		t.Fatalf("stored %+v", x)
	}
}

// A whole group of commands in one packet is answered in order (RFC 2920).
func TestSMTPPipelining(t *testing.T) {
	s := startSMTP(t, SMTPOptions{})
	c := dialed(t, s.Addr())
	for i := range 3 {
		c.send("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<bad>\r\nDATA\r\n")
		for _, want := range []string{"250", "250", "553", "354"} {
			c.want(want)
		}
		c.send(mailText("x", fmt.Sprint(i)) + ".\r\nNOOP\r\n")
		c.want("250 2.0.0 taken")
		c.want("250 2.0.0 done")
	}
	if n := s.o.Store.Count(); n != 3 {
		t.Fatalf("%d stored, want 3", n)
	}
}

func TestSMTPRefusals(t *testing.T) {
	s := startSMTP(t, SMTPOptions{})
	for _, tc := range []struct{ name, before, command, want string }{
		{"before EHLO", "", "MAIL FROM:<a@b>", "503"},
		{"unknown", "EHLO x", "BDAT 4", "500 5.5.1"},
		{"EHLO whom", "", "EHLO", "501"},
		{"no MAIL", "EHLO x", "RCPT TO:<a@b>", "503"},
		{"DATA early", "EHLO x", "DATA", "503"},
		{"no recipient", "EHLO x|MAIL FROM:<a@b>", "DATA", "554"},
		{"MAIL twice", "EHLO x|MAIL FROM:<a@b>", "MAIL FROM:<a@b>", "503"},
		{"after RSET", "EHLO x|MAIL FROM:<a@b>|RSET", "RCPT TO:<a@b>", "503"},
		{"after EHLO", "EHLO x|MAIL FROM:<a@b>|EHLO x", "RCPT TO:<a@b>", "503"},
		{"DATA argument", "EHLO x|MAIL FROM:<a@b>|RCPT TO:<a@b>", "DATA now", "501"},
		{"no brackets", "EHLO x", "MAIL FROM:a@b", "501"},
		{"space before", "EHLO x", "MAIL FROM: <a@b>", "501"},
		{"open bracket", "EHLO x", "MAIL FROM:<a@b", "501"},
		{"glued parameter", "EHLO x", "MAIL FROM:<a@b>SIZE=1", "501"},
		{"parameter unknown", "EHLO x", "MAIL FROM:<a@b> RET=HDRS", "555"},
		{"parameter with HELO", "HELO x", "MAIL FROM:<a@b> SIZE=1", "555"},
		{"SIZE too big", "EHLO x", "MAIL FROM:<a@b> SIZE=31457281", "552"},
		{"SIZE no number", "EHLO x", "MAIL FROM:<a@b> SIZE=x", "501"},
		{"BODY", "EHLO x", "MAIL FROM:<a@b> BODY=BINARYMIME", "501"},
		{"not ASCII", "EHLO x", "MAIL FROM:<ä@b>", "553"},
		{"not UTF-8", "EHLO x", "MAIL FROM:<\xff@b> SMTPUTF8", "553"},
		{"no domain", "EHLO x|MAIL FROM:<a@b>", "RCPT TO:<a>", "553"},
		{"empty recipient", "EHLO x|MAIL FROM:<a@b>", "RCPT TO:<>", "501"},
		{"unquoted", "EHLO x|MAIL FROM:<a@b>", "RCPT TO:<a b@c>", "553"},
		{"RCPT parameter", "EHLO x|MAIL FROM:<a@b>", "RCPT TO:<a@b> NOTIFY=NEVER", "555"},
		{"no AUTH", "EHLO x", "AUTH PLAIN AHUAcA==", "502"},
		{"TLS argument", "EHLO x", "STARTTLS now", "501"},
		{"bare LF", "EHLO x", "NOOP\nNOOP", "500 5.5.2"},
		{"bare CR", "EHLO x", "NOOP\rNOOP", "500 5.5.2"},
		{"long line", "EHLO x", "NOOP " + strings.Repeat("x", 4091), "500 5.5.2"},
		{"very long line", "EHLO x", "NOOP " + strings.Repeat("x", 100_000), "500 5.5.2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := dial(t, s.Addr())
			c.want("220")
			for b := range strings.SplitSeq(tc.before, "|") {
				if b != "" {
					c.do(b, "250")
				}
			}
			c.do(tc.command, tc.want)
			if tc.name == "bare LF" {
				c.want("250") // the second NOOP is a good one
			}
			c.do("NOOP", "250") // in step
		})
	}
	if n := s.o.Store.Count(); n != 0 {
		t.Fatalf("%d stored", n)
	}
}

func TestSMTPAccepts(t *testing.T) {
	s := startSMTP(t, SMTPOptions{})
	for _, tc := range []struct{ mail, rcpt, from, to, via string }{
		{`FROM:<>`, `TO:<a@b>`, ``, `a@b`, "ESMTP"},
		{`from:<a@b> size=100 body=8bitmime`, `to:<Postmaster>`, `a@b`, `Postmaster`, "ESMTP"},
		{`FROM:<ä@bü.example> SMTPUTF8`, `TO:<ö@b>`, `ä@bü.example`, `ö@b`, "UTF8SMTP"},
		{`FROM:<"a>b\" c"@d>`, `TO:<a@[127.0.0.1]>`, `"a>b\" c"@d`, `a@[127.0.0.1]`, "ESMTP"},
	} {
		c := dialed(t, s.Addr())
		c.do("MAIL "+tc.mail, "250")
		c.do("RCPT "+tc.rcpt, "250")
		c.do("DATA", "354")
		c.send(".\r\n")
		c.want("250")
		x := s.o.Store.List(1, nil)[0]
		if x.From != tc.from || x.To != tc.to || x.Via != tc.via || x.Size != 0 {
			t.Errorf("%s %s: stored %+v", tc.mail, tc.rcpt, x)
		}
	}
}

func TestSMTPTooManyRecipientsAndErrors(t *testing.T) {
	s := startSMTP(t, SMTPOptions{})
	c := dialed(t, s.Addr())
	c.do("MAIL FROM:<a@b>", "250")
	for i := range smtpMaxRecipients {
		c.do(fmt.Sprintf("RCPT TO:<%d@b>", i), "250")
	}
	c.do("RCPT TO:<more@b>", "452")
	for range smtpMaxErrors - 2 {
		c.do("WHAT", "500")
	}
	c.do("WHAT", "421")
	c.wantEnd()
}

// Whatever someone may take for the end of a message, here there is one
// message or none, and the conversation stays in step.
func TestSMTPSmuggling(t *testing.T) {
	s := startSMTP(t, SMTPOptions{})
	for _, end := range []string{
		"\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r", "\r\n.\r", "\r.\r\n", "\n.\r\r\n", "\r\n.\r\r\n", "\r\r\n.\n", "x\r", "\r\r\n",
	} {
		c := dialed(t, s.Addr())
		c.envelope("a@b")
		c.send("Subject: x\r\n\r\nhello" + end + "MAIL FROM:<evil@x>\r\nRCPT TO:<evil@x>\r\nDATA\r\nSubject: evil\r\n\r\n\r\n.\r\n")
		c.want("554 5.6.0")
		c.do("NOOP", "250 2.0.0 done")
	}
	if n := s.o.Store.Count(); n != 0 {
		t.Fatalf("%d stored", n)
	}
}

// Lines may be cut by packets and by the reader's buffer at any byte.
func TestSMTPLinesAcrossBuffers(t *testing.T) {
	s := startSMTP(t, SMTPOptions{})
	c := dialed(t, s.Addr())
	for _, n := range []int{16<<10 - 3, 16<<10 - 2, 16<<10 - 1, 16 << 10, 16<<10 + 1, 40_000} {
		body := strings.Repeat("x", n) + "\r\n..\r\n" + strings.Repeat("y", n) + "\r\n"
		c.envelope("a@b")
		c.send(body)
		c.send(".\r")
		c.send("\n")
		c.want("250 2.0.0 taken")
		x, ok, err := s.o.Store.Get(s.o.Store.Count())
		want := strings.Replace(body, "\r\n..\r\n", "\r\n.\r\n", 1)
		if err != nil || !ok || x.Size != len(want) || string(x.Raw) != want[:min(len(want), RawLimit)] {
			t.Fatalf("length %d: stored %d of %d bytes, wrong: %v, %v", n, len(x.Raw), len(want), ok, err)
		}
	}
	c.envelope("a@b")
	c.send(strings.Repeat("x", 16<<10-1) + "\ry\r\n.\r\n") // the CR ends the buffer
	c.want("554 5.6.0")
}

func TestSMTPOversize(t *testing.T) {
	s := startSMTP(t, SMTPOptions{})
	c := dialed(t, s.Addr())
	c.envelope("a@b")
	line := bytes.Repeat([]byte("x"), 1022)
	block := bytes.Repeat(append(line, "\r\n"...), 1024)
	for range 30 {
		c.send(string(block))
	}
	c.send("one byte more\r\n.\r\n")
	c.want("552 5.3.4")
	c.do("NOOP", "250")
	if n := s.o.Store.Count(); n != 0 {
		t.Fatalf("%d stored", n)
	}
}

func TestSMTPConcurrently(t *testing.T) {
	s := startSMTP(t, SMTPOptions{})
	const clients, each = 8, 20
	t.Run("clients", func(t *testing.T) { // ends when all of them have
		for i := range clients {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				c := dialed(t, s.Addr())
				for j := range each {
					c.send("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n")
					c.want("250")
					c.want("250")
					c.want("354")
					c.send(mailText("x", fmt.Sprintf("%d-%d", i, j)) + ".\r\n")
					c.want("250")
				}
			})
		}
	})
	ids := map[string]bool{}
	for _, x := range all(t, s.o.Store) {
		ids[x.MessageID] = true
	}
	if len(ids) != clients*each || s.o.Store.Count() != clients*each {
		t.Fatalf("%d ids, %d messages, want %d", len(ids), s.o.Store.Count(), clients*each)
	}
}

// Close must end a session that waits for its client.
func TestSMTPClose(t *testing.T) {
	s := startSMTP(t, SMTPOptions{})
	c := dialed(t, s.Addr())
	c.envelope("a@b")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	c.wantEnd()
}
