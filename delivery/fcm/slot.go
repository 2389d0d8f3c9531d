package fcm

import (
	"context"
	"net/http"

	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

// slot is the right to hand over one message, with token.
type slot struct {
	p     *Provider
	token string
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
		return message.Result{Outcome: message.Rejected, Code: codeInvalidArgument, Reply: "not sent: " + overhttp.Line(err.Error(), s.token)}
	}
	return s.place.Post(ctx, overhttp.Request{
		URL: s.p.cfg.send, Header: header(s.token), Body: payload,
		Judge: s.judge, Renew: s.renew, Secrets: []string{s.token},
	}, last)
}

func header(token string) http.Header {
	return http.Header{"Authorization": {"Bearer " + token}, "Content-Type": {"application/json"}}
}

// judge reads an answer. A token that FCM refuses is used for nothing more.
func (s *slot) judge(got overhttp.Answer) (message.Result, bool) {
	a := readAnswer(got)
	refused := a.status == http.StatusUnauthorized && a.code != codeThirdPartyAuth
	res := a.result(s.token)
	if refused {
		s.p.tokens.Reject(s.token)
	}
	return res, refused
}

func (s *slot) renew(ctx context.Context) (http.Header, error) {
	token, err := s.p.tokens.Get(ctx)
	if err != nil {
		return nil, err
	}
	s.token = token
	return header(token), nil
}
