package overhttp

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"strings"
	"time"

	"golang.org/x/net/http2"

	"github.com/stormpost/stormpost/internal/message"
)

// repeat says whether the message, certainly not taken, may be tried once more.
type repeat int

const (
	never repeat = iota
	withNewHeader
	withNewConn
)

// exchange makes one request on the place's connection and judges what became
// of it.
func (p *Place) exchange(ctx context.Context, req Request, since time.Time) (message.Result, repeat) {
	c := p.conn
	p.conn = nil // its place goes with RoundTrip
	broken := true
	defer func() { p.c.conns.free(c, broken) }()

	b := newBody(req.Body, since, p.c.cfg.Now)
	resp, err := c.RoundTrip(newRequest(ctx, req, b))
	if err != nil {
		return lost(err, b, req.Secrets)
	}
	defer resp.Body.Close()
	a := ReadAnswer(resp, p.c.cfg.Now())
	broken = !a.Whole
	res, refused := req.Judge(a)
	if refused {
		if p.c.cfg.Bound {
			p.c.conns.renew(c)
		}
		return res, withNewHeader
	}
	return res, never
}

func newRequest(ctx context.Context, req Request, b *body) *http.Request {
	header := http.Header{"User-Agent": {"stormpost"}}
	maps.Copy(header, req.Header)
	// Without GetBody, net/http can't make a second body either.
	r := &http.Request{
		Method: http.MethodPost, URL: req.URL, Host: req.URL.Host, Header: header,
		Body: b, ContentLength: int64(len(req.Body)),
	}
	return r.WithContext(ctx)
}

// lost judges a request that got no answer.
func lost(err error, b *body, secrets []string) (message.Result, repeat) {
	res := message.Result{Code: "no answer", Reply: Line(err.Error(), secrets...)}
	var reset http2.StreamError
	res.Fault = true
	switch {
	case b.seal():
		res.Outcome, res.Code = message.Deferred, "not sent"
		return res, withNewConn
	case goneAway(err):
		res.Outcome, res.Code = message.Deferred, "GOAWAY"
		return res, withNewConn
	case errors.As(err, &reset) && reset.Code == http2.ErrCodeRefusedStream:
		res.Outcome, res.Code = message.Deferred, "REFUSED_STREAM"
	default:
		res.Outcome = message.Unknown
	}
	return res, never
}

// goneAway says whether a GOAWAY told that the request's stream was above the
// last one that the server processed, or will: then it certainly was not (RFC
// 9113 §6.8). A stream at or below that number is left to its answer, and to
// another error if the connection ends without one.
//
// net/http has no type for it, so this is read from its text. Were that to
// change, the outcome would be Unknown, and TestGoAway fail.
func goneAway(err error) bool {
	text := err.Error()
	return text == "http2: Transport received Server's graceful shutdown GOAWAY" ||
		strings.HasPrefix(text, "http2: Transport received GOAWAY from server ErrCode:") // of a connection's first stream
}
