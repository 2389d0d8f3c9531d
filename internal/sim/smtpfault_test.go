package sim

import (
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// reach brings a new session to right before the server's answer at step.
func reach(t *testing.T, s *SMTPServer, step Step) *client {
	t.Helper()
	c := dial(t, s.Addr())
	for _, x := range []struct {
		step       Step
		send, want string
	}{
		{StepConnect, "", "220"},
		{StepEHLO, "EHLO x\r\n", "250"},
		{StepMail, "MAIL FROM:<a@b>\r\n", "250"},
		{StepRcpt, "RCPT TO:<c@d>\r\n", "250"},
		{StepData, "DATA\r\n", "354"},
		{StepMidData, "Subject: Hi\r\nMessage-ID: <1@x>\r\n\r\nfirst\r\n", ""},
		{StepDot, "second\r\n.\r\n", ""},
	} {
		if step == StepReply && x.step == StepDot {
			x.step = StepReply
		}
		c.send(x.send)
		if x.step == step {
			return c
		}
		if x.want != "" {
			c.want(x.want)
		}
	}
	t.Fatalf("can't reach %s", step)
	return nil
}

var smtpSteps = []Step{StepConnect, StepEHLO, StepMail, StepRcpt, StepData, StepMidData, StepDot, StepReply}

// wantStored checks what is stored once the server is done with its sessions.
func wantStored(t *testing.T, s *SMTPServer, step Step) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	want := 0
	if step == StepReply {
		want = 1
	}
	if n := s.o.Store.Count(); n != want {
		t.Fatalf("%d stored, want %d", n, want)
	}
}

func TestSMTPFaultAtEachStep(t *testing.T) {
	for _, step := range smtpSteps {
		for _, do := range []Action{Slow, Answer, Hang, Drop, Reset, Partial, Garbage} {
			if step == StepConnect && do == Reset {
				continue // see TestSMTPFaultResetsConnect
			}
			t.Run(string(step)+" "+string(do), func(t *testing.T) {
				t.Parallel()
				s := startSMTP(t, SMTPOptions{})
				called := make(chan Event, 1)
				setFaults(t, s, Fault{Step: step, Do: do, Code: 450, Error: "4.9.9 told to", Times: 1, Hook: func(e Event) { called <- e }})
				c := reach(t, s, step)
				ev := <-called
				if known := slices.Index(smtpSteps, step) >= slices.Index(smtpSteps, StepMidData); ev.Step != step || known != (ev.Subject == "Hi" && ev.MessageID == "1@x") {
					t.Fatalf("event %+v", ev)
				}
				checkFault(t, s, c, step, do)
			})
		}
	}
}

func checkFault(t *testing.T, s *SMTPServer, c *client, step Step, do Action) {
	t.Helper()
	switch do {
	case Slow:
		if step == StepMidData {
			c.send(".\r\n")
		}
		c.want(usualReply(step))
		return
	case Answer:
		c.want("450 4.9.9 told to\r\n")
		if step == StepConnect || step == StepMidData {
			c.wantEnd()
		} else {
			c.do("NOOP", "250 2.0.0 done")
		}
	case Hang:
		c.send("NOOP\r\n")
		if err := c.conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.r.ReadByte(); !isTimeout(err) {
			t.Fatalf("the server said something: %v", err)
		}
	case Drop:
		c.wantEnd()
	case Reset:
		if _, err := c.r.ReadByte(); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("got %v, want a reset", err)
		}
	case Partial:
		b, err := io.ReadAll(c.r)
		if err != nil || string(b) != usualReply(step)[:2] {
			t.Fatalf("got %q, %v", b, err)
		}
	case Garbage:
		c.want("\x00\xfe\xff")
	}
	wantStored(t, s, step)
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// The RST may arrive before the client knows that it was connected.
func TestSMTPFaultResetsConnect(t *testing.T) {
	s := startSMTP(t, SMTPOptions{})
	setFaults(t, s, Fault{Step: StepConnect, Do: Reset})
	conn, err := net.Dial("tcp", s.Addr())
	if err == nil {
		defer conn.Close()
		_, err = conn.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("got %v, want a reset", err)
	}
}

func TestSMTPFaultAtOtherSteps(t *testing.T) {
	s := startSMTP(t, SMTPOptions{Accounts: accounts, PlainAuth: true})
	setFaults(t, s,
		Fault{Step: StepSTARTTLS, Do: Answer, Code: 454},
		Fault{Step: StepAuth, Do: Answer, Code: 454, Times: 1},
		Fault{Step: StepQuit, Do: Drop})
	c := dialed(t, s.Addr())
	c.do("STARTTLS", "454 4.0.0 as simulated")
	c.do("AUTH PLAIN AHVzZXIAc2VjcmV0", "454")
	c.do("AUTH PLAIN AHVzZXIAc2VjcmV0", "235")
	c.send("QUIT\r\n")
	c.wantEnd()
}

// 421 is the server's way to say that it is about to close.
func TestSMTPFault421Closes(t *testing.T) {
	s := startSMTP(t, SMTPOptions{})
	setFaults(t, s, Fault{Step: StepReply, Do: Answer, Code: 421})
	c := reach(t, s, StepReply)
	c.want("421")
	c.wantEnd()
	wantStored(t, s, StepReply)
}

func TestSMTPFaultForOneRecipientOrSubject(t *testing.T) {
	s := startSMTP(t, SMTPOptions{})
	setFaults(t, s,
		Fault{Step: StepRcpt, Do: Answer, Code: 550, To: "bad@"},
		Fault{Step: StepDot, Do: Answer, Code: 451, Subject: "code"},
		Fault{Step: StepDot, Do: Answer, Code: 554, Match: func(e Event) bool { return e.MessageID == "3@x" }})
	c := dialed(t, s.Addr())
	c.do("MAIL FROM:<a@b>", "250")
	c.do("RCPT TO:<good@b>", "250")
	c.do("RCPT TO:<bad@b>", "550 5.0.0")
	c.do("DATA", "354")
	c.send(mailText("Hi", "1@x") + ".\r\n")
	c.want("250")
	c.envelope("good@b")
	c.send(mailText("Your code", "2@x") + ".\r\n")
	c.want("451")
	c.envelope("good@b")
	c.send(mailText("Hi", "3@x") + ".\r\n")
	c.want("554")
	ts := all(t, s.o.Store)
	if len(ts) != 1 || ts[0].To != "good@b" || strings.Join(ts[0].Faults, " ") != "rcpt:answer" {
		t.Fatalf("stored %+v", ts)
	}
}

// A fault in the middle of a pipelined group comes after the replies before it.
func TestSMTPFaultAfterPipelinedReplies(t *testing.T) {
	s := startSMTP(t, SMTPOptions{})
	setFaults(t, s, Fault{Step: StepRcpt, Do: Drop, To: "second"})
	c := dialed(t, s.Addr())
	c.send("MAIL FROM:<a@b>\r\nRCPT TO:<first@b>\r\nRCPT TO:<second@b>\r\nDATA\r\n")
	c.want("250 2.1.0")
	c.want("250 2.1.5")
	c.wantEnd()
}

// Close ends a delay, a hang and what follows a hook.
func TestSMTPCloseEndsFaults(t *testing.T) {
	for _, f := range []Fault{
		{Step: StepDot, Delay: time.Hour},
		{Step: StepDot, Do: Hang},
	} {
		s := startSMTP(t, SMTPOptions{})
		entered := make(chan struct{})
		f.Match = func(Event) bool { close(entered); return true }
		setFaults(t, s, f)
		reach(t, s, StepDot)
		<-entered
		wantStored(t, s, StepDot)
	}
}

func TestSMTPDelayDelays(t *testing.T) {
	s := startSMTP(t, SMTPOptions{})
	setFaults(t, s, Fault{Step: StepReply, Do: Slow, Delay: 60 * time.Millisecond})
	start := time.Now()
	c := reach(t, s, StepReply)
	c.want("250")
	if d := time.Since(start); d < 60*time.Millisecond {
		t.Fatalf("answered after %v", d)
	}
}
