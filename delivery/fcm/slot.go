package fcm

import (
	"context"
	"net/http"

	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

// slot is the right to hand over one message, with an access token.
type slot struct {
	p     *Provider
	use   credential.Use
	place *overhttp.Place
}

// Release gives the slot back.
func (s *slot) Release() { s.place.Release() }

// Send hands env over in one request, or in two where the first was certainly
// not taken: refused for its token, or lost before its body was touched. The
// package comment says which answer makes which outcome.
func (s *slot) Send(ctx context.Context, env *message.Envelope, last func() error) message.Result {
	payload, err := encode(env, s.p.cfg.Now())
	if err != nil {
		return message.Result{Outcome: message.Rejected, Code: codeInvalidArgument, Reply: "not sent: " + overhttp.Line(err.Error(), s.use.Value())}
	}
	return s.place.Post(ctx, overhttp.Request{
		URL: s.p.cfg.send, Header: header(s.use.Value()), Body: payload,
		Judge: s.judge, Renew: s.renew, Secrets: []string{s.use.Value()},
	}, last)
}

func header(token string) http.Header {
	return http.Header{"Authorization": {"Bearer " + token}, "Content-Type": {"application/json"}}
}

// judge reads an answer, and says what it tells of the token.
func (s *slot) judge(got overhttp.Answer) (message.Result, bool) {
	a := readAnswer(got)
	res := a.result(s.use.Value())
	refused := a.status == http.StatusUnauthorized && a.code != codeThirdPartyAuth
	switch {
	case refused:
		s.use.Rejected(res.Reply)
	case a.vouches():
		s.use.Accepted()
	}
	return res, refused
}

func (s *slot) renew(ctx context.Context) (http.Header, error) {
	use, err := s.p.cfg.Token.Use(ctx)
	if err != nil {
		return nil, err
	}
	s.use = use
	return header(use.Value()), nil
}
