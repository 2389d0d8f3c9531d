package app

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/internal/config"
	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/mail"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/sim"
)

// odd are texts that some header, address or payload doesn't bear.
var odd = []string{
	"", " ", "a b", "\t", "\r\nX: y", "\x00", "\x7f", "\xff", "\u0085", "\u2028", "\u00a0", "\u200b", "\u202e", "\ue000", "\U0010ffff", "e\u0301", "ü", "İ", "ẞ", "追跡番号", "👩‍👩‍👧",
	`"`, `\`, `"\`, "'", "`", "?", "a,b;c", "<x>", "(c)", "[x]", "@", ":", ";", "%", "!", "/", "..", "a.", ".a", "-", "_", "a_b", "~",
	"=?utf-8?q?x?=", "=?utf-8?b?w7w=?=", "=?x?q?y?=", "=?utf-8?q?=22=5C?=", "=?utf-8?q?=E2=80=AE?=",
	strings.Repeat("a", 61), strings.Repeat("a", 64), strings.Repeat("ü", 32), strings.Repeat("N", 76), strings.Repeat("N", 255), strings.Repeat("N", 256),
	strings.Repeat("ü", 127), strings.Repeat(`"`, 255), strings.Repeat("N", 980), strings.Repeat("N", 985), strings.Repeat("N", 990), strings.Repeat("N", 998),
	strings.Repeat(`\"`, 490), strings.Repeat("n ", 490), strings.Repeat("n\u00a0", 330), strings.Repeat("ü", 490), "N" + strings.Repeat(" ", 990) + "N",
	"=?utf-8?b?" + base64.StdEncoding.EncodeToString([]byte(strings.Repeat(`"`, 720))) + "?=",
	"from", "message_type", "google", "googlex", "google.x", "gcm", "gcmx", "gcm.notification.x", "aps", "stormpost_id", "stormpost_image",
	"text/plain", "text/plain; charset=x", "multipart/mixed", "message/rfc822", "text/plain; *0=x", "text/plain; a*=utf-8''%ff", "text/plain; a=\"b\"; a=c", "a/b/c",
	"text/plain; a*0=" + strings.Repeat("x", 120) + "; a*1=" + strings.Repeat("y", 110), "text/plain; a*=utf-8''" + strings.Repeat("%C3%BC", 38),
	"From", "X-SG-ID", "X_Y", "X.Y", "List-Unsubscribe", "Content-X", "Sender", "Message-ID",
	"https://127.0.0.1:99999/x", "https://127.0.0.1:0/x", "https://127.0.0.1/%zz", "https://a b/x",
}

// oddEmails are good emails with one odd text each, by what it is and where.
func oddEmails() map[string]*message.Email {
	all := make(map[string]*message.Email)
	add := func(where string, change func(*message.Email)) {
		e := &message.Email{From: "shop@sender.example", To: []string{"to@reader.example"}, Subject: "s", Text: "t"}
		change(e)
		all[where] = e
	}
	for _, s := range odd {
		for name, change := range map[string]func(*message.Email){
			"from's name":       func(e *message.Email) { e.From = s + " <shop@sender.example>" },
			"from's name in \"": func(e *message.Email) { e.From = `"` + s + `" <shop@sender.example>` },
			"from's short name": func(e *message.Email) { e.From = s + " <a@b.co>" },
			"from's local part": func(e *message.Email) { e.From = s + "@sender.example" },
			"from's domain":     func(e *message.Email) { e.From = "shop@" + s + ".example" },
			"to's name":         func(e *message.Email) { e.To = []string{s + " <to@reader.example>"} },
			"to's name in \"":   func(e *message.Email) { e.To = []string{`"` + s + `" <to@reader.example>`} },
			"to's local part":   func(e *message.Email) { e.To = []string{"x" + s + "@reader.example"} },
			"to's domain":       func(e *message.Email) { e.To = []string{"to@" + s + ".example"} },
			"cc":                func(e *message.Email) { e.Cc = []string{s + "@reader.example"} },
			"cc's name":         func(e *message.Email) { e.Cc = []string{`"` + s + `" <cc@reader.example>`} },
			"bcc":               func(e *message.Email) { e.To, e.Bcc = nil, []string{s + "@reader.example"} },
			"reply_to":          func(e *message.Email) { e.ReplyTo = []string{"r@reader.example", s + "@reader.example"} },
			"reply_to's name":   func(e *message.Email) { e.ReplyTo = []string{`"` + s + `" <r@reader.example>`, "r@reader.example"} },
			"subject":           func(e *message.Email) { e.Subject = s },
			"text":              func(e *message.Email) { e.Text = s },
			"html":              func(e *message.Email) { e.HTML = s },
			"header":            func(e *message.Email) { e.Headers = map[string]string{"X-Odd": s} },
			"header's name":     func(e *message.Email) { e.Headers = map[string]string{s: "x"} },
			"long header's name": func(e *message.Email) {
				e.Headers = map[string]string{strings.Repeat("X", 76): s}
			},
			"filename": func(e *message.Email) { e.Attachments = []message.Attachment{{Filename: s, Content: []byte("x")}} },
			"content": func(e *message.Email) {
				e.Text, e.Attachments = "", []message.Attachment{{Filename: "a", Content: []byte(s)}}
			},
			"content_type": func(e *message.Email) {
				e.Attachments = []message.Attachment{{Filename: "a.txt", ContentType: s, Content: []byte("x")}}
			},
			"content_id": func(e *message.Email) {
				e.HTML, e.Attachments = "<p>", []message.Attachment{{Filename: "a", ContentID: s, Content: []byte("x")}}
			},
			"name of a file within": func(e *message.Email) {
				e.HTML, e.Attachments = "<p>", []message.Attachment{{Filename: s, ContentID: "x@y", Content: []byte("x")}}
			},
		} {
			add(fmt.Sprintf("%s %.60q of %d", name, s, len(s)), change)
		}
	}
	long := strings.Repeat("a", 64) + "@" + strings.Repeat("abcdefgh.", 20) + "example"
	add("50 recipients", func(e *message.Email) {
		e.To, e.From = nil, `"`+strings.Repeat("x", 240)+`" <`+strings.Repeat("a", 64)+"@sender.example>"
		for i := range 25 {
			e.To = append(e.To, fmt.Sprintf("%s %d <%d%s>", strings.Repeat("ü", 300), i, i, long[2:]))
			e.Cc = append(e.Cc, fmt.Sprintf("%s %d <c%d%s>", strings.Repeat("x", 700), i, i, long[3:]))
		}
	})
	add("all in bcc", func(e *message.Email) { e.To, e.Bcc = nil, []string{"b@reader.example", "c@reader.example"} })
	add("as much of all as may be", func(e *message.Email) {
		e.Headers = make(map[string]string)
		for i := range 50 {
			e.Headers[fmt.Sprintf("X-%02d%s", i, strings.Repeat("x", 72))] = strings.Repeat("v", 998-76-2)
		}
		for i := range 20 {
			e.Attachments = append(e.Attachments, message.Attachment{
				Filename: fmt.Sprintf("%02d%s", i, strings.Repeat("ü", 126)), ContentID: fmt.Sprintf("%02d%s", i, strings.Repeat("x", 253)),
				ContentType: "text/x; a=" + strings.Repeat("y", 245), Content: []byte("x"),
			})
		}
		for i := range 10 {
			e.ReplyTo = append(e.ReplyTo, fmt.Sprintf("r%d@reader.example", i))
		}
		e.Subject, e.HTML = strings.Repeat("ü", 499), "<p>"
	})
	add("nothing but a file", func(e *message.Email) {
		e.Subject, e.Text, e.Attachments = "", "", []message.Attachment{{Filename: "a", Content: []byte{}}}
	})
	add("no subject", func(e *message.Email) { e.Subject = "" })
	for _, s := range []string{"<", "\x7f", "\u2028"} { // each grows in one encoding or another
		add(fmt.Sprintf("10 MiB of %q", s), func(e *message.Email) { e.HTML, e.Text = strings.Repeat(s, 10<<20/len(s)-1), "" })
	}
	return all
}

// TestAcceptedEmailsCanBeSent hands to each provider what the door takes when
// email goes to it: its builder can build it, and its service, by the
// simulator's rules, takes it. What never can be sent has to be refused while
// somebody listens.
func TestAcceptedEmailsCanBeSent(t *testing.T) {
	sims, err := sim.StartAll(t.Context(), sim.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sims.Close() })
	c := keyed(t, sims)
	c.SMTP.Addr = sims.SMTP.Addr()
	emails := oddEmails()
	for _, name := range c.Email() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := made(t, c)
			pr, _, err := p.email(name)
			if err != nil {
				t.Fatal(err)
			}
			defer pr.Close()
			door := ingest.New(nil, nil, ingest.Config{EmailCheck: checkEmail([]string{name})})
			taken := 0
			for what, e := range emails {
				if sendAccepted(t, door, pr, what, &message.Content{Email: e}) {
					taken++
				}
			}
			if taken < len(emails)/3 {
				t.Errorf("only %d of %d were taken", taken, len(emails))
			}
		})
	}
}

// TestAcceptedPushesCanBeSent is the same for pushes.
func TestAcceptedPushesCanBeSent(t *testing.T) {
	sims, err := sim.StartAll(t.Context(), sim.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer sims.Close()
	account, err := os.ReadFile(sims.ServiceAccountFile)
	if err != nil {
		t.Fatal(err)
	}
	c := config.Default()
	c.FCM.ServiceAccount, c.FCM.BaseURL = config.Live(account), sims.FCM.URL()
	d := &dev{sims: sims}
	if err := d.usePushSims(&c); err != nil {
		t.Fatal(err)
	}
	browser := d.addr.Subscription
	p := &process{cfg: c, log: slog.New(slog.DiscardHandler)}
	defer p.teardown()
	if _, err := p.buildProviders(); err != nil {
		t.Fatal(err)
	}
	door := ingest.New(nil, nil, ingest.Config{Platforms: c.Platforms(), PushCheck: checkPush(c)})
	for _, pr := range p.providers {
		target := map[string]message.Target{
			"fcm": {Token: "token"}, "apns": {Token: strings.Repeat("ab", 32)}, "webpush": {Endpoint: browser.Endpoint, Keys: browser.Keys},
		}[pr.Name()]
		taken, all := 0, 0
		for _, s := range odd {
			for name, change := range map[string]func(*message.Push){
				"token":           func(p *message.Push) { p.To.Token = s },
				"topic":           func(p *message.Push) { p.To = message.Target{Topic: s} },
				"endpoint":        func(p *message.Push) { p.To.Endpoint = s },
				"title":           func(p *message.Push) { p.Notification = &message.Notification{Title: s, Body: "b"} },
				"body":            func(p *message.Push) { p.Notification = &message.Notification{Body: s} },
				"image":           func(p *message.Push) { p.Notification = &message.Notification{Title: "t", Image: s} },
				"data's name":     func(p *message.Push) { p.Data = map[string]string{s: "v"} },
				"data":            func(p *message.Push) { p.Data = map[string]string{"k": s} },
				"much data":       func(p *message.Push) { p.Data = map[string]string{"k": strings.Repeat(s, 4096/max(1, len(s)))} },
				"collapse_key":    func(p *message.Push) { p.CollapseKey = s },
				"as much as fits": func(p *message.Push) { p.Data = map[string]string{"k": strings.Repeat("x", 3900) + s} },
			} {
				push := &message.Push{Platform: pr.Name(), To: target, Data: map[string]string{"k": "v"}}
				push.To.Keys = maps.Clone(push.To.Keys)
				change(push)
				all++
				if sendAccepted(t, door, pr, fmt.Sprintf("%s: %s %.60q of %d", pr.Name(), name, s, len(s)), &message.Content{Push: push}) {
					taken++
				}
			}
		}
		if taken < all/3 {
			t.Errorf("%s: only %d of %d were taken", pr.Name(), taken, all)
		}
	}
}

// FuzzAcceptedEmail has no email that the door takes and no builder can build.
func FuzzAcceptedEmail(f *testing.F) {
	f.Add("Zoë <a@b.example>", `"x" <c@d.example>`, "s", "t", "X-A", "v", "f.pdf", "text/plain; a=b", "id@x")
	f.Add("=?utf-8?q?=22?= <a@STRA\u1e9eE.example>", "\u00a0@d.example", "=?x?q?y?=", "\x7f", "List-Unsubscribe", "<https://x.example>", "ü\"\\;", "a/b; *0=x", "")
	door := ingest.New(nil, nil, ingest.Config{})
	f.Fuzz(func(t *testing.T, from, to, subject, text, name, value, file, kind, id string) {
		c := &message.Content{Email: &message.Email{
			From: from, To: []string{to}, ReplyTo: []string{to, from}, Subject: subject, Text: text, HTML: text, Headers: map[string]string{name: value},
			Attachments: []message.Attachment{{Filename: file, ContentType: kind, ContentID: id, Content: []byte("x")}},
		}}
		if len(door.Validate(ingest.Request{Principal: &keyring.Principal{Tenant: 1, Domains: []string{"*"}}, Content: c})) > 0 {
			return
		}
		env := &message.Envelope{Recipient: to, Content: c}
		if _, err := mail.NewLetter(env); err != nil {
			t.Errorf("no letter: %v", err)
		}
		d, err := mail.NewDraft(env)
		if err == nil {
			err = mail.Compose(new(bytes.Buffer), env, &d, time.Now(), false)
		}
		if err != nil {
			t.Errorf("no message: %v", err)
		}
	})
}

// sendAccepted hands a message over to each of its recipients, if the door takes
// it.
func sendAccepted(t *testing.T, door *ingest.Service, pr delivery.Provider, what string, c *message.Content) bool {
	t.Helper()
	if wrong := door.Validate(ingest.Request{Principal: &keyring.Principal{Tenant: 1, Domains: []string{"*"}}, Content: c}); len(wrong) > 0 {
		return false
	}
	sub, err := message.Submit(1, what, c, time.Now(), time.Hour)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	kept, err := message.DecodeContent(sub.Content)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	for i, to := range sub.Recipients {
		slot, err := pr.Reserve(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		res := slot.Send(t.Context(), &message.Envelope{
			Position: message.PositionOf(sub.Lane, 1, i), ID: sub.ID().Message(i), Attempt: 1, Tenant: 1, Recipient: to, Content: kept, ExpiresAt: sub.ExpiresAt,
		}, func() error { return nil })
		slot.Release()
		if res.Outcome != message.Sent {
			t.Errorf("%s was accepted, and to %.80q is %v: %s %.300s", what, to, res.Outcome, res.Code, res.Reply)
		}
	}
	return true
}
