package smtp

import (
	"context"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

var beforeDot, atDot = []string{"MAIL", "RCPT", "DATA"}, []string{"dot"}

// outcomeTable is every kind of reply, at every step.
var outcomeTable = []struct {
	steps []string
	reply string
	want  message.Outcome
	code  string
	lives bool // the connection is used again
}{
	{beforeDot, "421 4.3.2 closing", message.Deferred, "421", false},
	{beforeDot, "450 4.2.1 later", message.Deferred, "450", true},
	{beforeDot, "451 4.7.1 greylisted", message.Deferred, "451", true},
	{beforeDot, "452 4.2.2 full", message.Deferred, "452", true},
	{beforeDot, "432 4.7.12 change the password", message.Deferred, "432", true},
	{beforeDot, "454 4.7.0 not now", message.Deferred, "454", true},
	{beforeDot, "455 4.5.4 unable to accommodate parameters", message.Deferred, "455", true},
	{beforeDot, "499 who knows", message.Deferred, "499", true},
	{beforeDot, "500 5.5.2 what", message.Rejected, "500", true},
	{beforeDot, "501 5.1.3 bad address", message.Rejected, "501", true},
	{beforeDot, "502 5.5.1 not implemented", message.Rejected, "502", true},
	{beforeDot, "503 5.5.1 AUTH first", message.Deferred, "503", true},
	{beforeDot, "504 5.5.4 parameter not implemented", message.Rejected, "504", true},
	{beforeDot, "534 5.7.9 too weak", message.Deferred, "534", false},
	{beforeDot, "553 5.1.7 sender not allowed", message.Rejected, "553", true},
	{beforeDot, "555 5.5.4 unknown parameter", message.Rejected, "555", true},
	{beforeDot, "530 5.7.0 Authentication required", message.Deferred, "530", false},
	{beforeDot, "535 5.7.8 signed out", message.Deferred, "535", false},
	{beforeDot, "538 5.7.11 encrypt", message.Deferred, "538", false},
	{beforeDot, "521 no mail here", message.Deferred, "521", false},
	{[]string{"MAIL", "DATA"}, "550 5.1.1 unknown", message.Rejected, "550", true},
	{[]string{"RCPT"}, "550 5.1.1 unknown", message.Rejected, message.RecipientGone, true},
	{[]string{"RCPT"}, "551 5.1.6 moved", message.Rejected, message.RecipientGone, true},
	{[]string{"RCPT"}, "556 5.1.10 takes no mail", message.Rejected, message.RecipientGone, true},
	{[]string{"RCPT"}, "550 5.2.1 disabled", message.Rejected, message.RecipientGone, true},
	{[]string{"RCPT"}, "450 4.1.1 unverified", message.Deferred, "450", true},
	{[]string{"RCPT"}, "550 5.1.3 bad address", message.Rejected, "550", true},
	{[]string{"RCPT"}, "550 no such user here", message.Rejected, "550", true},
	{[]string{"RCPT"}, "550 5.7.1 policy", message.Rejected, "550", true},
	{atDot, "550 5.1.1 unknown", message.Rejected, "550", true},
	{[]string{"RCPT"}, "550-5.1.1 un\r\n550 5.1.1 known", message.Rejected, message.RecipientGone, true},
	{beforeDot, "550 5.7.8 signed out", message.Deferred, "550", false},
	{beforeDot, "552 5.3.4 too big", message.Rejected, "552", true},
	{beforeDot, "554 5.7.1 spam", message.Rejected, "554", true},
	{beforeDot, "599 who knows", message.Rejected, "599", true},
	{beforeDot, "150 what", message.Deferred, "", false},
	{beforeDot, "600 what", message.Deferred, "", false},
	{beforeDot, "hello", message.Deferred, "", false},
	{beforeDot, "25", message.Deferred, "", false},
	{beforeDot, "550-a\r\n551 b", message.Deferred, "", false},
	{beforeDot, strings.Repeat("550-x\r\n", 200) + "550 x", message.Deferred, "", false},
	{beforeDot, "550 " + strings.Repeat("x", 5000), message.Deferred, "", false},
	{beforeDot, cut, message.Deferred, "", false},
	{beforeDot, partial, message.Deferred, "", false},
	{[]string{"MAIL", "RCPT"}, "354 go on", message.Deferred, "", false},
	{[]string{"MAIL", "RCPT"}, "251 will forward", message.Sent, "250", true},
	{[]string{"DATA"}, "250 ok", message.Deferred, "", false},
	{[]string{"body"}, cut, message.Unknown, "", false},

	{atDot, "250 ok", message.Sent, "250", true},
	{atDot, "250", message.Sent, "250", true},
	{atDot, "250-o\r\n250 k", message.Sent, "250", true},
	{atDot, "252 so be it", message.Sent, "252", true},
	{atDot, "421 closing", message.Deferred, "421", false},
	{atDot, "421 4.7.0 too much", message.Deferred, "421", false},
	// A proxy that lost the next server can't know.
	{atDot, "421 4.4.0 relay.example Lost connection to relay server", message.Unknown, "421", false},
	{atDot, "451 4.4.2 lost connection", message.Unknown, "451", false},
	{atDot, "421 4.3.2 Shutting down", message.Unknown, "421", false},
	{atDot, "451 4.4.1 no answer from host", message.Deferred, "451", true},
	{atDot, "451 4.3.2 not now", message.Deferred, "451", true},
	{atDot, "450 4.2.1 later", message.Deferred, "450", true},
	{atDot, "451 4.3.0 later", message.Deferred, "451", true},
	{atDot, "452 4.3.1 full", message.Deferred, "452", true},
	{atDot, "550 5.7.1 spam", message.Rejected, "550", true},
	{atDot, "552 5.3.4 too big", message.Rejected, "552", true},
	{atDot, "554 5.6.0 no", message.Rejected, "554", true},
	{atDot, "354 go on", message.Unknown, "", false},
	{atDot, "150 what", message.Unknown, "", false},
	{atDot, "600 what", message.Unknown, "", false},
	{atDot, "200x", message.Unknown, "", false},
	{atDot, "hello", message.Unknown, "", false},
	{atDot, "250-ok\r\n451 no", message.Unknown, "", false},
	{atDot, strings.Repeat("250-x\r\n", 200) + "250 x", message.Unknown, "", false},
	{atDot, "250 " + strings.Repeat("x", 5000), message.Unknown, "", false},
	{atDot, cut, message.Unknown, "", false},
	{atDot, partial, message.Unknown, "", false},
}

// TestOutcomes is outcomeTable with and without PIPELINING.
func TestOutcomes(t *testing.T) {
	for _, c := range outcomeTable {
		for _, step := range c.steps {
			for _, offers := range [][]string{nil, everything} {
				name := step + "/" + printable(strings.Trim(c.reply, "\x00"))[:min(24, len(printable(strings.Trim(c.reply, "\x00"))))]
				t.Run(name, func(t *testing.T) {
					srv := startServer(t, script{offers: offers, replies: map[string]string{step: c.reply}})
					p := newProvider(t, srv, func(c *Config) { c.Connections = 1 })
					r := send(t, p, envelope(1))
					// A server that leaves between the two may be seen to before the dot.
					if r.Outcome != c.want && !(step == "body" && r.Outcome == message.Deferred) {
						t.Errorf("outcome is %v (%s), want %v", r.Outcome, r.Reply, c.want)
					}
					if r.Code != c.code {
						t.Errorf("code is %q, want %q", r.Code, c.code)
					}
					if r.Outcome == message.Sent && offers == nil && r.Reference != "" && step == "dot" {
						t.Errorf("reference is %q", r.Reference)
					}
					srv.set(script{offers: offers})
					if r := send(t, p, envelope(2)); r.Outcome != message.Sent || r.Reference != "Q1" {
						t.Errorf("next message: %v (%s), reference %q", r.Outcome, r.Reply, r.Reference)
					}
					if lives := srv.connections() == 1; lives != c.lives {
						t.Errorf("connection was used again: %v, want %v", lives, c.lives)
					}
				})
			}
		}
	}
}

// A group of commands whose RCPT was refused must not end in a message, even
// where the server answers 354 to DATA.
func TestRefusedGroup(t *testing.T) {
	for _, c := range []struct {
		name    string
		replies map[string]string
		want    string
		broken  bool // the connection is
	}{
		{"MAIL decides", map[string]string{"MAIL": "451 mail", "RCPT": "550 rcpt", "DATA": "554 data"}, "451 mail", false},
		{"RCPT decides", map[string]string{"RCPT": "550 rcpt", "DATA": "451 data"}, "550 rcpt", false},
		{"DATA decides", map[string]string{"DATA": "451 data"}, "451 data", false},
		{"354 after RCPT", map[string]string{"RCPT": "550 rcpt", "DATA": "354 go on"}, "550 rcpt", true},
		{"354 after MAIL", map[string]string{"MAIL": "550 mail", "DATA": "354 go on"}, "550 mail", true},
		{"cut after RCPT", map[string]string{"RCPT": "550 rcpt", "DATA": cut}, "550 rcpt", true},
		{"421 in the middle", map[string]string{"RCPT": "421 leaving"}, "421 leaving", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv := startServer(t, script{offers: everything, replies: c.replies})
			p := newProvider(t, srv, nil)
			slot := reserve(t, p)
			r := slot.Send(t.Context(), envelope(1), func() error { t.Error("last was called"); return nil })
			if broken := slot.(interface{ isBroken() bool }).isBroken(); broken != c.broken {
				t.Errorf("connection is broken: %v, want %v", broken, c.broken)
			}
			slot.Release()
			if r.Reply != c.want {
				t.Errorf("reply is %q, want %q", r.Reply, c.want)
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
			srv.Close()
			if n := len(srv.got()); n > 0 {
				t.Errorf("server got %d messages", n)
			}
		})
	}
}

func (s *slot) isBroken() bool { return s.c.broken }

// Two replies to one final dot: the second must not be read as the next message's.
func TestReplyTooMany(t *testing.T) {
	srv := startServer(t, script{offers: everything, replies: map[string]string{"dot": "250 one\r\n250 two"}})
	p := newProvider(t, srv, func(c *Config) { c.Connections = 1 })
	if r := send(t, p, envelope(1)); r.Reply != "250 one" {
		t.Errorf("first: %+v", r)
	}
	srv.set(script{offers: everything, replies: map[string]string{"dot": "554 no"}})
	if r := send(t, p, envelope(2)); r.Outcome != message.Rejected {
		t.Errorf("second: %+v", r)
	}
}

// brokenPipe is a connection whose writes fail, with something left to read.
type brokenPipe struct {
	net.Conn
	left *strings.Reader
}

func (c brokenPipe) Read(b []byte) (int, error) { return c.left.Read(b) }
func (brokenPipe) Write([]byte) (int, error)    { return 0, syscall.EPIPE }
func (brokenPipe) SetDeadline(time.Time) error  { return nil }

// When the final write fails only a refusal that was left behind is an answer.
func TestFinalWriteFails(t *testing.T) {
	for left, want := range map[string]message.Outcome{
		"421 4.4.2 idle too long\r\n": message.Deferred,
		"554 5.7.1 no\r\n":            message.Rejected,
		"250 2.0.0 ok\r\n":            message.Unknown,
		"421 4.4.2 idle":              message.Unknown,
		"":                            message.Unknown,
	} {
		s := slot{p: &Provider{cfg: Config{}.withDefaults()}, c: newConn(brokenPipe{left: strings.NewReader(left)})}
		if r := s.final(t.Context(), []byte(finalDot)); r.Outcome != want || !s.c.broken {
			t.Errorf("%q: %+v, broken %v", left, r, s.c.broken)
		}
	}
}

// When ctx ends before the final write has begun, nothing is in doubt.
func TestContextEndsWithinLast(t *testing.T) {
	srv := startServer(t, script{offers: everything})
	p := newProvider(t, srv, nil)
	s := reserve(t, p).(*slot)
	ctx, cancel := context.WithCancel(t.Context())
	r := s.Send(ctx, envelope(1), func() error {
		cancel()
		s.c.interrupt() // as the end of ctx does, but in time
		return nil
	})
	s.Release()
	if r.Outcome != message.Returned {
		t.Errorf("%+v", r)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	srv.Close()
	if n := len(srv.got()); n > 0 {
		t.Errorf("server got %d messages", n)
	}
}

func TestReplyLimit(t *testing.T) {
	srv := startServer(t, script{offers: everything, replies: map[string]string{"dot": hang}})
	p := newProvider(t, srv, func(c *Config) { c.ReplyLimit = time.Second })
	if r := send(t, p, envelope(1)); r.Outcome != message.Unknown {
		t.Errorf("%+v", r)
	}
	<-srv.hanging
}

func TestCommandTimeout(t *testing.T) {
	for _, step := range []string{"MAIL", "RCPT", "DATA"} {
		srv := startServer(t, script{replies: map[string]string{step: hang}})
		p := newProvider(t, srv, func(c *Config) { c.CommandTimeout = 50 * time.Millisecond })
		if r := send(t, p, envelope(1)); r.Outcome != message.Deferred {
			t.Errorf("%s: %+v", step, r)
		}
	}
}

// The steps before the final dot have no longer than the claim, whatever
// CommandTimeout is; the reply to the dot has its own limit.
func TestEnvelopeEndsWithClaim(t *testing.T) {
	for _, step := range []string{"MAIL", "RCPT", "DATA"} {
		for _, offers := range [][]string{nil, everything} {
			srv := startServer(t, script{offers: offers, replies: map[string]string{step: hang}})
			p := newProvider(t, srv, nil)
			env := envelope(1)
			env.Until = time.Now().Add(200 * time.Millisecond)
			began := time.Now()
			if r := send(t, p, env); r.Outcome != message.Deferred || !r.Fault || time.Since(began) > 30*time.Second {
				t.Errorf("%s: %+v after %v", step, r, time.Since(began))
			}
		}
	}
	// Signing in anew is one of them.
	sc := script{offers: []string{"AUTH PLAIN"}, user: "shop", pass: "s3cret", replies: map[string]string{"MAIL": "530 5.7.0 sign in"}}
	srv := startServer(t, sc)
	s := reserve(t, newProvider(t, srv, func(c *Config) { password(t, c, "shop", "s3cret"); c.AllowInsecureAuth = true })).(*slot)
	defer s.Release()
	srv.set(script{offers: sc.offers, user: sc.user, pass: sc.pass, replies: map[string]string{"MAIL": sc.replies["MAIL"], "greeting": hang}})
	env := envelope(1)
	env.Until = time.Now().Add(200 * time.Millisecond)
	began := time.Now()
	if r := s.Send(t.Context(), env, yes); r.Outcome != message.Returned || !r.Fault || time.Since(began) > 20*time.Second {
		t.Errorf("signed out: %+v after %v", r, time.Since(began))
	}

	s = reserve(t, newProvider(t, startServer(t, script{offers: everything}), nil)).(*slot)
	defer s.Release()
	env.Until = time.Now().Add(time.Minute)
	r := s.Send(t.Context(), env, func() error {
		s.c.until = time.Unix(1, 0) // it has just ended
		return nil
	})
	if r.Outcome != message.Sent {
		t.Errorf("the claim ended after the last check: %+v", r)
	}
}

// A server that refuses a long message before its end has not taken it.
func TestRefusedWithinMessage(t *testing.T) {
	env := envelope(1)
	env.Content.Email.Text = strings.Repeat("long\n", 4<<20/5)
	srv := startServer(t, script{offers: everything, replies: map[string]string{"DATA": "354 go\r\n552 5.3.4 too long", "body": cut}})
	p := newProvider(t, srv, nil)
	slot := reserve(t, p)
	defer slot.Release()
	r := slot.Send(t.Context(), env, func() error { t.Error("last was called"); return nil })
	if r.Outcome != message.Rejected || r.Code != "552" {
		t.Errorf("%+v", r)
	}
}

func TestRetryAfter(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"4.2.0 Greylisted, see you in 300 seconds": 5 * time.Minute,
		"4.7.1 try again after 5 minutes":          5 * time.Minute,
		"Greylisted for 60s":                       time.Minute,
		"retry in 2 hours please":                  2 * time.Hour,
		"retry in 999999 hours":                    24 * time.Hour,
		"try again later":                          0,
		"in 5 messages":                            0,
		"in 99999999999999999999 s":                0,
	} {
		if got := refused(reply{451, []string{text}}).RetryAfter; got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

func TestReference(t *testing.T) {
	for text, want := range map[string]string{
		"2.0.0 Ok: queued as 4dYQ2k1Zz9z":       "4dYQ2k1Zz9z",
		"OK id=1tHcFz-00000-2K":                 "1tHcFz-00000-2K",
		"Ok 0100018f-1234-5678-9abc-00000":      "0100018f-1234-5678-9abc-00000",
		"Ok thanks":                             "",
		"queued":                                "",
		"queued as " + strings.Repeat("x", 300): "",
	} {
		if got := accepted(reply{250, []string{text}}).Reference; got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestPrintable(t *testing.T) {
	long := strings.Repeat("é", 300)
	for in, want := range map[string]string{
		"a\tb\r\nc\x00d\x1b[31m\u0085\u2028": "a bcd[31m",
		"bad \xff utf8":                      "bad \uFFFD utf8",
		long:                                 long[:500],
		"x" + long:                           "x" + long[:498],
	} {
		if got := printable(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// What a server says of itself is its own fault, what it says of a recipient or a
// message isn't. A connection that breaks is.
func TestFaults(t *testing.T) {
	for reply, want := range map[string]bool{
		"421 closing": true, "421 4.7.0 too many": true, "451 4.3.0 later": true, "452 4.3.1 full": true, "521 no mail here": true,
		"450 4.2.1 later": false, "451 4.7.1 greylisted": false, "450 wait": false, "452 4.2.2 over quota": false, "550 5.1.1 unknown": false,
		cut: true, "hello": true,
	} {
		for _, step := range []string{"MAIL", "RCPT", "dot"} {
			srv := startServer(t, script{offers: everything, replies: map[string]string{step: reply}})
			r := send(t, newProvider(t, srv, nil), envelope(1))
			if got := r.Fault || r.Outcome == message.Unknown; got != want {
				t.Errorf("%q to %s: fault %v, %v %s", reply, step, got, r.Outcome, r.Reply)
			}
		}
	}
}
