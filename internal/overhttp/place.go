package overhttp

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// handOver is how long after last a request's body may begin to leave, in the
// second try as well. last allows a claim of 30 s; this comes on top.
const handOver = 10 * time.Second

// Place is the right to make one request. conn has a place reserved for it
// until Post uses it up, and is nil from then on.
type Place struct {
	c    *Client
	conn *conn
}

// Request is one message's POST. URL, Body and Judge are required; the URL's
// host is the client's.
type Request struct {
	URL    *url.URL
	Header http.Header // Post doesn't change it
	Body   []byte
	// Judge says what an answer means for the message, in a Result that Line
	// made fit to be shown; and whether the request was refused for its
	// credential alone, so that the message was certainly not taken.
	Judge func(Answer) (res message.Result, refused bool)
	// Renew is a header with another credential, for a second try after a
	// refusal. It is nil if there never is one, and fails if there is none now.
	Renew func(ctx context.Context) (http.Header, error)
	// Secrets are left out of what errors of the connection say.
	Secrets []string
}

// Release gives the place back. It is called exactly once, after Post or
// without it.
func (p *Place) Release() {
	if p.conn != nil {
		p.conn.Release()
		p.c.conns.free(p.conn, false)
		p.conn = nil
	}
	<-p.c.slots
}

// Post makes the request, as the package comment says; it is called at most
// once. The contract of last and ctx is that of delivery.Slot.Send.
func (p *Place) Post(ctx context.Context, req Request, last func() error) message.Result {
	if ctx.Err() != nil {
		return message.Result{Outcome: message.Returned, Reply: "stopped before the request"}
	}
	if err := last(); err != nil {
		return message.Result{Outcome: message.Returned, Reply: Line(err.Error(), req.Secrets...)}
	}
	since := p.c.cfg.Now()
	limited, cancel := context.WithTimeout(ctx, p.c.cfg.ReplyLimit)
	defer cancel()
	res, again := p.exchange(limited, req, since)
	if again != never && p.prepare(limited, &req, again, since) {
		res, again = p.exchange(limited, req, since)
	}
	if again == withNewHeader || again != never && ctx.Err() != nil {
		// Nobody took it, and it is not the message's fault: no attempt of its.
		res.Outcome = message.Returned
	}
	return res
}

// prepare gets what a second try needs, if there is time for one.
func (p *Place) prepare(ctx context.Context, req *Request, again repeat, since time.Time) bool {
	left := handOver - passed(since, p.c.cfg.Now())
	ctx, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	if again == withNewHeader {
		if req.Renew == nil {
			return false
		}
		header, err := req.Renew(ctx)
		if err != nil {
			return false
		}
		req.Header = header
	}
	var err error
	p.conn, err = p.c.conns.reserve(ctx)
	return err == nil && ctx.Err() == nil
}
