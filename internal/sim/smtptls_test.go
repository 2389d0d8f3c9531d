package sim

import (
	"crypto/tls"
	"encoding/base64"
	"errors"
	"net/smtp"
	"net/textproto"
	"testing"
)

var accounts = map[string]string{"user": "secret"}

func TestSMTPWithTLSAndAuth(t *testing.T) {
	s := startSMTP(t, SMTPOptions{Accounts: accounts})
	c, err := smtp.Dial(s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if ok, _ := c.Extension("AUTH"); ok {
		t.Error("AUTH is offered in the clear")
	}
	if err := c.StartTLS(&tls.Config{RootCAs: s.Pool(), ServerName: "127.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	if ok, _ := c.Extension("STARTTLS"); ok {
		t.Error("STARTTLS is offered twice")
	}
	wantCode(t, c.Mail("a@example.com"), 530)
	wantCode(t, c.Auth(smtp.PlainAuth("", "user", "wrong", "127.0.0.1")), 535)
	// net/smtp gives up after that.
	c, err = smtp.Dial(s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.StartTLS(&tls.Config{RootCAs: s.Pool(), ServerName: "localhost"}); err != nil {
		t.Fatal(err)
	}
	wantCode(t, c.Auth(smtp.PlainAuth("", "user", "secret", "127.0.0.1")), 0)
	wantCode(t, c.Mail("a@example.com"), 0)
	wantCode(t, c.Rcpt("b@example.com"), 0)
	w, err := c.Data()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(mailText("Hi", "1@x"))); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if x := s.o.Store.List(1, nil)[0]; x.Via != "UTF8SMTPSA" || x.Conn != 2 {
		t.Fatalf("stored %+v", x)
	}
}

func wantCode(t *testing.T, err error, code int) {
	t.Helper()
	var reply *textproto.Error
	if code == 0 && err == nil || errors.As(err, &reply) && reply.Code == code {
		return
	}
	t.Fatalf("got %v, want %d", err, code)
}

func TestSMTPStartTLSRefusesPipelinedCommands(t *testing.T) {
	s := startSMTP(t, SMTPOptions{})
	c := dialed(t, s.Addr())
	c.send("STARTTLS\r\nMAIL FROM:<evil@x>\r\n")
	c.want("554")
	c.wantEnd()
}

func TestSMTPAuth(t *testing.T) {
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	s := startSMTP(t, SMTPOptions{Accounts: accounts, PlainAuth: true, NoTLS: true})
	for _, tc := range []struct {
		name  string
		steps [][2]string
	}{
		{"PLAIN", [][2]string{{"AUTH PLAIN " + b64("\x00user\x00secret"), "235"}, {"AUTH PLAIN x", "503"}}},
		{"PLAIN with authzid", [][2]string{{"AUTH plain " + b64("user\x00user\x00secret"), "235"}}},
		{"PLAIN challenged", [][2]string{{"AUTH PLAIN", "334 \r\n"}, {b64("\x00user\x00secret"), "235"}}},
		{"LOGIN", [][2]string{{"AUTH LOGIN", "334 VXNlcm5hbWU6"}, {b64("user"), "334 UGFzc3dvcmQ6"}, {b64("secret"), "235"}}},
		{"LOGIN with user", [][2]string{{"AUTH LOGIN " + b64("user"), "334 UGFzc3dvcmQ6"}, {b64("secret"), "235"}, {"MAIL FROM:<a@b>", "250"}}},
		{"wrong", [][2]string{{"AUTH PLAIN " + b64("\x00user\x00no"), "535"}, {"MAIL FROM:<a@b>", "530"}, {"AUTH PLAIN " + b64("\x00user\x00secret"), "235"}}},
		{"for another", [][2]string{{"AUTH PLAIN " + b64("root\x00user\x00secret"), "501"}}},
		{"unknown user", [][2]string{{"AUTH PLAIN " + b64("\x00nobody\x00"), "535"}}},
		{"three times", [][2]string{{"AUTH PLAIN " + b64("\x00a\x00b"), "535"}, {"AUTH PLAIN " + b64("\x00a\x00b"), "535"}, {"AUTH PLAIN " + b64("\x00a\x00b"), "421"}}},
		{"canceled", [][2]string{{"AUTH LOGIN", "334"}, {"*", "501"}, {"NOOP", "250"}}},
		{"empty", [][2]string{{"AUTH PLAIN =", "501"}}},
		{"other", [][2]string{{"AUTH CRAM-MD5", "504"}}},
		{"no TLS", [][2]string{{"STARTTLS", "502"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := dialed(t, s.Addr())
			for _, step := range tc.steps {
				c.do(step[0], step[1])
			}
		})
	}

	t.Run("rotated", func(t *testing.T) {
		s.SetAccounts(map[string]string{"user": "new"})
		c := dialed(t, s.Addr())
		c.do("AUTH PLAIN "+b64("\x00user\x00secret"), "535")
		c.do("AUTH PLAIN "+b64("\x00user\x00new"), "235")
	})
	t.Run("only after TLS", func(t *testing.T) {
		c := dialed(t, startSMTP(t, SMTPOptions{Accounts: accounts}).Addr())
		c.do("AUTH PLAIN "+b64("\x00user\x00secret"), "538")
	})
}
