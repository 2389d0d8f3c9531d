package smtp

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
)

// testServer is an SMTP server that does what its script says.
type testServer struct {
	ln      net.Listener
	hanging chan struct{}
	quit    chan struct{}
	wg      sync.WaitGroup

	mu       sync.Mutex
	script   script
	conns    map[net.Conn]bool
	accepted int        // connections
	messages [][]byte   // whole, unstuffed, as they were taken or refused
	seen     []string   // every line outside of messages
	envelope [][]string // MAIL and RCPT lines of each of messages
}

// script is a server's behaviour. The zero script is a good server.
type script struct {
	offers    []string            // lines after the first in the reply to EHLO
	tlsOffers []string            // the same under TLS
	replies   map[string]string   // by step: what to say, without the final CRLF, or one of the actions below
	answer    func(string) string // likewise, by line; wins if not empty
	cert      *tls.Certificate
	implicit  bool
	user      string // AUTH must give user and pass
	pass      string
	eod       []string // what ends a message; default CRLF.CRLF only
}

// What a script may have a server do instead of replying.
const (
	cut     = "\x00cut"     // close the connection
	hang    = "\x00hang"    // say nothing until the server is closed
	partial = "\x00partial" // half a reply, then close
)

var everything = []string{"PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE 10485760", "ENHANCEDSTATUSCODES"}

func startServer(t *testing.T, s script) *testServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &testServer{ln: ln, script: s, conns: make(map[net.Conn]bool), quit: make(chan struct{}), hanging: make(chan struct{}, 64)}
	srv.wg.Go(srv.serve)
	t.Cleanup(srv.Close)
	return srv
}

func (s *testServer) addr() string { return s.ln.Addr().String() }

func (s *testServer) set(sc script) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script = sc
}

func (s *testServer) now() script {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.script
}

func (s *testServer) got() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.messages)
}

func (s *testServer) lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen)
}

// count is how many lines were seen that begin with verb.
func (s *testServer) count(verb string) (n int) {
	for _, l := range s.lines() {
		if strings.HasPrefix(l, verb) {
			n++
		}
	}
	return n
}

func (s *testServer) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted
}

func (s *testServer) Close() {
	s.mu.Lock()
	select {
	case <-s.quit:
	default:
		close(s.quit)
	}
	_ = s.ln.Close()
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *testServer) serve() {
	for {
		nc, err := s.ln.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.accepted++
		s.conns[nc] = true
		s.mu.Unlock()
		s.wg.Go(func() {
			defer func() {
				_ = nc.Close()
				s.mu.Lock()
				delete(s.conns, nc)
				s.mu.Unlock()
			}()
			(&session{s: s, nc: nc, br: bufio.NewReader(nc)}).run()
		})
	}
}

type session struct {
	s    *testServer
	nc   net.Conn
	br   *bufio.Reader
	tls  bool
	said string // the last reply
	ok   int    // commands of this envelope that were taken: MAIL and RCPT make 2
	mail []string
}

// say does what the script has for step; def is a good server's reply.
func (x *session) say(step, line, def string) bool {
	sc := x.s.now()
	text := def
	if r, ok := sc.replies[step]; ok {
		text = r
	}
	if sc.answer != nil {
		if r := sc.answer(line); r != "" {
			text = r
		}
	}
	x.said = text
	switch text {
	case cut:
		return false
	case hang:
		x.s.hanging <- struct{}{}
		<-x.s.quit
		return false
	case partial:
		_, _ = x.nc.Write([]byte("250-2.0.0 half a re"))
		return false
	}
	_, err := x.nc.Write([]byte(text + "\r\n"))
	return err == nil && !strings.HasPrefix(text, "421")
}

func (x *session) run() {
	if x.s.now().implicit && !x.startTLS() {
		return
	}
	if !x.say("greeting", "", "220 test ESMTP") {
		return
	}
	for {
		line, err := x.br.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		x.s.mu.Lock()
		x.s.seen = append(x.s.seen, line)
		x.s.mu.Unlock()
		verb, _, _ := strings.Cut(strings.ToUpper(line), " ")
		verb, _, _ = strings.Cut(verb, ":")
		if !x.command(verb, line) {
			return
		}
	}
}

func (x *session) command(verb, line string) bool {
	sc := x.s.now()
	switch verb {
	case "EHLO":
		offers := sc.offers
		if x.tls && sc.tlsOffers != nil {
			offers = sc.tlsOffers
		}
		return x.say(verb, line, ehloReply(offers))
	case "STARTTLS":
		return x.say(verb, line, "220 go on") && x.startTLS()
	case "AUTH":
		return x.auth(sc, line)
	case "MAIL":
		if x.ok > 0 {
			return x.say("nested MAIL", line, "503 5.5.1 nested MAIL command")
		}
		x.mail = nil
		fallthrough
	case "RCPT":
		x.mail = append(x.mail, line)
		going := x.say(verb, line, "250 2.1.0 ok")
		if strings.HasPrefix(x.said, "25") {
			x.ok++
		}
		return going
	case "DATA":
		def := "354 go on"
		if x.ok < 2 {
			def = "503 5.5.1 need MAIL and RCPT"
		}
		if !x.say(verb, line, def) {
			return false
		}
		if strings.HasPrefix(x.said, "354") {
			x.ok = 0
			return x.data()
		}
		return true
	case "RSET":
		x.ok = 0
	case "QUIT":
		x.say(verb, line, "221 bye")
		return false
	}
	return x.say(verb, line, "250 2.0.0 ok")
}

func ehloReply(offers []string) string {
	lines := append([]string{"test greets you"}, offers...)
	for i := range lines {
		sep := "-"
		if i == len(lines)-1 {
			sep = " "
		}
		lines[i] = "250" + sep + lines[i]
	}
	return strings.Join(lines, "\r\n")
}

func (x *session) startTLS() bool {
	cert := x.s.now().cert
	if cert == nil {
		return false
	}
	tc := tls.Server(x.nc, &tls.Config{Certificates: []tls.Certificate{*cert}})
	if tc.Handshake() != nil {
		return false
	}
	x.nc, x.br, x.tls = tc, bufio.NewReader(tc), true
	return true
}

func (x *session) auth(sc script, line string) bool {
	good := false
	switch words := strings.Fields(line); words[1] {
	case "PLAIN":
		good = words[2] == base64.StdEncoding.EncodeToString([]byte("\x00"+sc.user+"\x00"+sc.pass))
	case "LOGIN":
		fmt.Fprintf(x.nc, "334 %s\r\n", base64.StdEncoding.EncodeToString([]byte("Password:")))
		pass, _ := x.br.ReadString('\n')
		good = words[2] == base64.StdEncoding.EncodeToString([]byte(sc.user)) &&
			strings.TrimSpace(pass) == base64.StdEncoding.EncodeToString([]byte(sc.pass))
	}
	if !good {
		return x.say("AUTH", line, "535 5.7.8 no")
	}
	return x.say("AUTH", line, "235 2.7.0 welcome")
}

// data reads one message, up to whatever the script takes for its end.
func (x *session) data() bool {
	sc := x.s.now()
	ends := sc.eod
	if len(ends) == 0 {
		ends = []string{"\r\n.\r\n"}
	}
	b := []byte("\r\n") // so that a lone dot is an end
	if sc.replies["body"] == cut {
		_, _ = x.br.ReadByte()
		return false
	}
	for {
		c, err := x.br.ReadByte()
		if err != nil {
			return false
		}
		b = append(b, c)
		if c != '\n' && c != '\r' {
			continue
		}
		for _, end := range ends {
			if bytes.HasSuffix(b, []byte(end)) {
				if next, _ := x.br.Peek(min(1, x.br.Buffered())); c == '\r' && string(next) == "\n" {
					_, _ = x.br.Discard(1)
				}
				msg := bytes.TrimPrefix(b[:len(b)-len(end)+2], []byte("\r\n"))
				msg = bytes.ReplaceAll(append([]byte("\r\n"), msg...), []byte("\r\n."), []byte("\r\n"))[2:]
				x.s.mu.Lock()
				x.s.messages = append(x.s.messages, msg)
				x.s.envelope = append(x.s.envelope, x.mail)
				x.s.mu.Unlock()
				return x.say("dot", "", "250 2.0.0 ok queued as Q1")
			}
		}
	}
}
