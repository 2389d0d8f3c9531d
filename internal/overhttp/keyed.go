package overhttp

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
)

// Standing is what an answer tells of the credential that was shown.
type Standing uint8

// The kinds of Standing.
const (
	Unsaid  Standing = iota
	LetIn            // only who was let in gets such an answer
	Refused          // for the credential alone: the message was certainly not taken
)

// Keyed is a Place with a credential to show.
type Keyed struct {
	*Place
	service *Service
	cred    *credential.Credential
	use     credential.Use
}

// KeyedRequest is a Request whose header is made of a credential.
type KeyedRequest struct {
	URL  *url.URL
	Body []byte
	// Account, if it isn't empty, is whose keys alone may be used (see
	// Keyed.Account).
	Account string
	// Header is for one try with secret.
	Header func(secret string) (http.Header, error)
	// Judge says what an answer means for the message and for the credential.
	// The Result was made fit to be shown with hide, as by Answer.Result.
	Judge func(a Answer, hide []string) (message.Result, Standing)
	// Hide is the parts of secret that must not be shown; nil: the whole.
	Hide func(secret string) []string
}

var errOtherAccount = errors.New("the key is not that of the account which absorbs the repeat")

// Keyed waits for a slot, a place on a connection and a generation of cred.
func (s *Service) Keyed(ctx context.Context, cred *credential.Credential) (*Keyed, error) {
	p, err := s.Place(ctx)
	if err != nil {
		return nil, err
	}
	// It comes last, so that it doesn't age while a slot is waited for.
	use, err := cred.Use(ctx)
	if err == nil {
		return &Keyed{Place: p, service: s, cred: cred, use: use}, nil
	}
	p.Release()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("provider %s: %w", s.opt.Name, err)
}

// Hand is Place.Post, with one more try when the credential is refused and
// another can be had.
func (k *Keyed) Hand(ctx context.Context, req KeyedRequest, last func() error) message.Result {
	hide := func() []string {
		if req.Hide == nil {
			return []string{k.use.Value()}
		}
		return req.Hide(k.use.Value())
	}
	header, err := req.Header(k.use.Value())
	if err != nil {
		return message.Result{Outcome: message.Returned, Code: "not sent", Reply: Line(err.Error(), hide()...)}
	}
	return k.Post(ctx, Request{
		URL: req.URL, Header: header, Body: req.Body, Secrets: hide(),
		Judge: func(a Answer) (message.Result, bool) {
			res, standing := req.Judge(a, hide())
			switch standing {
			case LetIn:
				k.use.Accepted()
			case Refused:
				k.use.Rejected(res.Reply)
			}
			return res, standing == Refused
		},
		Renew: func(ctx context.Context) (http.Header, error) {
			use, err := k.cred.Use(ctx)
			if err != nil {
				return nil, err
			}
			if req.Account != "" && k.service.Account(use.Value()) != req.Account {
				return nil, errOtherAccount
			}
			k.use = use
			return req.Header(use.Value())
		},
	}, last)
}

// Account names the account that the key belongs to, by a digest of it and of
// the service's address. A key that takes another's place has another name.
func (k *Keyed) Account() string { return k.service.Account(k.use.Value()) }
