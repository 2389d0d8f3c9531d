package fcm

import (
	"context"
	"time"

	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
)

// handOver is how long after last a request's body may begin to leave, in the
// second try as well. last allows a claim of 30 s; this comes on top.
const handOver = 10 * time.Second

// slot is the right to hand over one message. conn has a place reserved for it
// until Send uses it up, and is nil from then on.
type slot struct {
	p    *Provider
	use  credential.Use
	conn *conn
}

// Release gives the slot back.
func (s *slot) Release() {
	if s.conn != nil {
		s.conn.Release()
		s.p.conns.free(s.conn, false)
		s.conn = nil
	}
	<-s.p.slots
}

// Send hands env over in one request, or in two where the first was certainly
// not taken: refused for its token, or lost before its body was touched. The
// package comment says which answer makes which outcome.
func (s *slot) Send(ctx context.Context, env *message.Envelope, last func() error) message.Result {
	payload, err := encode(env, s.p.cfg.Now())
	if err != nil {
		return message.Result{Outcome: message.Rejected, Code: "INVALID_ARGUMENT", Reply: "not sent: " + line(err.Error(), s.use.Value())}
	}
	if ctx.Err() != nil {
		return message.Result{Outcome: message.Returned, Reply: "stopped before the request"}
	}
	if err := last(); err != nil {
		return message.Result{Outcome: message.Returned, Reply: line(err.Error(), s.use.Value())}
	}
	since := s.p.cfg.Now()
	limited, cancel := context.WithTimeout(ctx, s.p.cfg.ReplyLimit)
	defer cancel()
	res, again := s.exchange(limited, newBody(payload, since, s.p.cfg.Now))
	if again != never && s.prepare(limited, since) {
		res, again = s.exchange(limited, newBody(payload, since, s.p.cfg.Now))
	}
	if again == withNewToken || again != never && ctx.Err() != nil {
		// Nobody took it, and it is not the message's fault: no attempt of its.
		res.Outcome = message.Returned
	}
	return res
}

// prepare gets what a second try needs, if there is time for one.
func (s *slot) prepare(ctx context.Context, since time.Time) bool {
	left := handOver - passed(since, s.p.cfg.Now())
	ctx, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	use, err := s.p.cfg.Token.Use(ctx)
	if err != nil {
		return false
	}
	s.use = use
	s.conn, err = s.p.conns.reserve(ctx)
	return err == nil && ctx.Err() == nil
}
