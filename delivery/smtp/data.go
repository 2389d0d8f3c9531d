package smtp

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// data sends the message that the server waits for, and its final dot if last
// allows.
func (s *slot) data(ctx context.Context, last func() error) message.Result {
	c := s.c
	tail := c.wire.Bytes()
	for len(tail) > finalWrite {
		// Never less than the whole of the last finalWrite bytes is left over.
		n := min(len(tail)-finalWrite, 256<<10)
		if err := c.arm(s.p.limits.block); err != nil {
			return s.early(ctx, err)
		}
		if _, err := c.nc.Write(tail[:n]); err != nil {
			return s.tooSoon(ctx, err)
		}
		tail = tail[n:]
	}
	if !c.quiet() {
		return s.tooSoon(ctx, fmt.Errorf("%w: the server didn't wait for the end", errProtocol))
	}
	if err := ctx.Err(); err != nil {
		return s.early(ctx, err)
	}
	if err := last(); err != nil {
		c.broken = true // the server is left in the middle of a message
		return message.Result{Outcome: message.Returned, Reply: printable(err.Error())}
	}
	return s.final(ctx, tail)
}

// tooSoon reads what a server said before it had the whole message: it has not
// taken it, whatever that is.
func (s *slot) tooSoon(ctx context.Context, err error) message.Result {
	s.c.broken = true
	s.c.until = time.Time{} // a refusal that is there may be read
	if s.c.arm(time.Second) == nil {
		if r, readErr := readReply(s.c.br); readErr == nil && r.class() >= 4 {
			return refused(r)
		}
	}
	return s.early(ctx, err)
}

// final makes the irrevocable write and waits for the answer. One limit is for
// both, and for all lines of the reply; the claim has no end any more.
func (s *slot) final(ctx context.Context, tail []byte) message.Result {
	c := s.c
	c.until = time.Time{}
	if err := c.arm(s.p.cfg.ReplyLimit); err != nil {
		return s.early(ctx, err) // ctx ended within last: nothing was written
	}
	_, writeErr := c.nc.Write(tail)
	if writeErr != nil {
		c.broken = true
		// A server that closed with a refusal may have left it to be read. That it
		// accepted what it can't have read is not to be believed.
		if r, err := readReply(c.br); err == nil && r.class() >= 4 {
			return refused(r)
		}
		return s.unknown(writeErr)
	}
	r, err := readReply(c.br)
	if err != nil {
		return s.unknown(err)
	}
	c.sent++
	c.verified = s.p.cfg.Now()
	c.stale = false
	c.broken = r.code == 421
	switch r.class() {
	case 2:
		return accepted(r)
	case 4, 5:
		if aboutConnection(r) {
			res := s.unknown(errors.New(r.String()))
			res.Code = strconv.Itoa(r.code)
			return res
		}
		c.stale = true
		return refused(r)
	}
	return s.unknown(fmt.Errorf("%w: unexpected reply %q", errProtocol, r.String()))
}

// unknown is the result of anything but a clear answer to the final write.
func (s *slot) unknown(err error) message.Result {
	s.c.broken = true
	return message.Result{Outcome: message.Unknown, Reply: printable("no clear answer to the final dot: " + err.Error())}
}
