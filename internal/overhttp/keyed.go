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
	Refused          // for the credential alone: a message was certainly not taken
)

// API is how a vendor takes a message, in one request that shows a key. All but
// IDHeader and Hide is required.
type API struct {
	Vendor   string   // for people
	BaseURL  string   // the vendor's, for where Options has none
	Path     []string // of the POST that hands a message over
	SignIn   []string // of a GET that shows the key, and changes nothing
	IDHeader string   // the header that has the message's id
	// Encode is the body for a message, the same at every attempt. Its error is
	// the message's own fault, and a *mail.Unfit.
	Encode func(env *message.Envelope) ([]byte, error)
	// Sign puts key into the header of r, whose body is body.
	Sign func(r *http.Request, body []byte, key string) error
	// Judge says what the answer to a message means for it and for the key. The
	// Result was made fit to be shown with hide, as by Answer.Result.
	Judge func(a Answer, hide []string) (message.Result, Standing)
	// Admits says what the answer to SignIn means.
	Admits func(a Answer) Standing
	// Hide is the parts of key that must not be shown; nil: the whole.
	Hide func(key string) []string
}

// Bearer is an API.Sign of RFC 6750.
func Bearer(r *http.Request, _ []byte, key string) error {
	r.Header.Set("Authorization", "Bearer "+key)
	return nil
}

func (a *API) hide(key string) []string {
	if a.Hide == nil {
		return []string{key}
	}
	return a.Hide(key)
}

// Keyed is a Service whose API takes messages with a key, which may change. It is
// safe for concurrent use.
type Keyed struct {
	*Service
	api          API
	key          *credential.Credential
	send, signIn *url.URL
}

// NewKeyed makes what o, whose defaults it fills in, and key describe. It fails
// with message.FieldErrors, which begin with bad. Close must be called.
func NewKeyed(o *Options, key *credential.Credential, api API, bad ...message.FieldError) (*Keyed, error) {
	if o.BaseURL == "" {
		o.BaseURL = api.BaseURL
	}
	base, errs := o.Check()
	errs = append(bad, errs...)
	if key == nil {
		errs = append(errs, message.FieldError{Field: "key", Problem: "is required"})
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("%s: %w", api.Vendor, errs)
	}
	s := NewService(*o, base, nil)
	return &Keyed{Service: s, api: api, key: key, send: s.URL(api.Path...), signIn: s.URL(api.SignIn...)}, nil
}

// Credential is the key.
func (k *Keyed) Credential() *credential.Credential { return k.key }

// LogIn shows the key, and hands nothing over; away is in its error when nobody
// answers.
func (k *Keyed) LogIn(ctx context.Context, away error) error {
	for try := 0; ; try++ {
		use, err := k.key.Use(ctx)
		if err != nil {
			return err
		}
		hide := k.api.hide(use.Value())
		a, err := k.ask(ctx, use.Value())
		if err != nil {
			return fmt.Errorf("%s %w: %s", k.api.Vendor, away, Line(err.Error(), hide...))
		}
		res := a.Result("", string(a.Body), hide...)
		switch k.api.Admits(a) {
		case LetIn:
			use.Accepted()
			return nil
		case Refused:
			use.Rejected(res.Reply)
			if try == 0 {
				continue
			}
		}
		return fmt.Errorf("credential %s: %s answered %s", k.key.Name(), k.api.Vendor, res.Reply)
	}
}

func (k *Keyed) ask(ctx context.Context, key string) (Answer, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, k.signIn.String(), nil)
	if err != nil {
		return Answer{}, err
	}
	if r.Header, err = k.header(r, nil, key); err != nil {
		return Answer{}, err
	}
	r.Header.Set("User-Agent", "stormpost")
	resp, err := k.client.HTTP().Do(r)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	return ReadAnswer(resp, k.Now()), nil
}

// header is that of r, with key.
func (k *Keyed) header(r *http.Request, body []byte, key string) (http.Header, error) {
	r.Header = http.Header{"Accept": {"application/json"}}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	err := k.api.Sign(r, body, key)
	return r.Header, err
}

// Slot is a Place with a key to show. It is a delivery.Slot.
type Slot struct {
	*Place
	k   *Keyed
	use credential.Use
}

// Slot waits for a slot, a place on a connection and a generation of the key.
func (k *Keyed) Slot(ctx context.Context) (*Slot, error) {
	p, err := k.Place(ctx)
	if err != nil {
		return nil, err
	}
	// It comes last, so that it doesn't age while a slot is waited for.
	use, err := k.key.Use(ctx)
	if err == nil {
		return &Slot{p, k, use}, nil
	}
	p.Release()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("provider %s: %w", k.opt.Name, err)
}

// Account names the account that the key belongs to, by a digest of it and of
// the service's address. A key that takes another's place has another name.
func (s *Slot) Account() string { return s.k.Account(s.use.Value()) }

var errOtherAccount = errors.New("the key is not that of the account which absorbs the repeat")

// Send hands env over in one request, or in two where the first was refused for
// its key alone and another can be had.
func (s *Slot) Send(ctx context.Context, env *message.Envelope, last func() error) message.Result {
	api := &s.k.api
	body, err := api.Encode(env)
	if err != nil {
		return Unfit(err)
	}
	hide := func() []string { return api.hide(s.use.Value()) }
	header, err := s.header(ctx, env, body)
	if err != nil {
		return message.Result{Outcome: message.Returned, Code: "not sent", Reply: Line(err.Error(), hide()...)}
	}
	return s.Post(ctx, Request{
		URL: s.k.send, Header: header, Body: body, Secrets: hide(),
		Judge: func(a Answer) (message.Result, bool) {
			res, standing := api.Judge(a, hide())
			switch standing {
			case LetIn:
				s.use.Accepted()
			case Refused:
				s.use.Rejected(res.Reply)
			}
			return res, standing == Refused
		},
		Renew: func(ctx context.Context) (http.Header, error) {
			use, err := s.k.key.Use(ctx)
			if err != nil {
				return nil, err
			}
			if env.Account != "" && s.k.Account(use.Value()) != env.Account {
				return nil, errOtherAccount
			}
			s.use = use
			return s.header(ctx, env, body)
		},
	}, last)
}

// header is that of the request for env.
func (s *Slot) header(ctx context.Context, env *message.Envelope, body []byte) (http.Header, error) {
	r := &http.Request{Method: http.MethodPost, URL: s.k.send, Host: s.k.send.Host, ContentLength: int64(len(body))}
	h, err := s.k.header(r.WithContext(ctx), body, s.use.Value())
	if s.k.api.IDHeader != "" {
		h.Set(s.k.api.IDHeader, env.ID.String())
	}
	return h, err
}
