package fcm

import (
	"context"
	"errors"
	"io"
	"net/http"

	"golang.org/x/net/http2"

	"github.com/stormpost/stormpost/internal/message"
)

// maxAnswer bounds an answer's body; FCM's are well under 4 KiB.
const maxAnswer = 64 << 10

// repeat says whether the message, certainly not taken, may be tried once more.
type repeat int

const (
	never repeat = iota
	withNewToken
	withNewConn
)

// exchange makes one request on the slot's connection and judges what became
// of it.
func (s *slot) exchange(ctx context.Context, b *body) (message.Result, repeat) {
	c := s.conn
	s.conn = nil // its place goes with RoundTrip
	broken := true
	defer func() { s.p.conns.free(c, broken) }()

	resp, err := c.RoundTrip(s.request(ctx, b))
	if err != nil {
		return lost(err, b, s.use.Value())
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	whole := err == nil && len(raw) <= maxAnswer
	broken = !whole
	a := readAnswer(resp, raw, whole, s.p.cfg.Now())
	res := a.result(s.use.Value())
	switch {
	case a.status == http.StatusUnauthorized && a.code != codeThirdPartyAuth:
		s.use.Rejected(res.Reply)
		return res, withNewToken
	case a.vouches():
		s.use.Accepted()
	}
	return res, never
}

func (s *slot) request(ctx context.Context, b *body) *http.Request {
	// Without GetBody, net/http can't make a second body either.
	req := &http.Request{
		Method: http.MethodPost, URL: s.p.cfg.send, Host: s.p.cfg.send.Host, Body: b, ContentLength: int64(len(b.rest)),
		Header: http.Header{
			"Authorization": {"Bearer " + s.use.Value()},
			"Content-Type":  {"application/json"},
			"User-Agent":    {"stormpost"},
		},
	}
	return req.WithContext(ctx)
}

// lost judges a request that got no answer.
func lost(err error, b *body, token string) (message.Result, repeat) {
	res := message.Result{Code: "no answer", Reply: line(err.Error(), token)}
	var reset http2.StreamError
	switch {
	case b.seal():
		res.Outcome, res.Code = message.Deferred, "not sent"
		return res, withNewConn
	case errors.As(err, &reset) && reset.Code == http2.ErrCodeRefusedStream:
		res.Outcome, res.Code = message.Deferred, "REFUSED_STREAM"
	default:
		res.Outcome = message.Unknown
	}
	return res, never
}
