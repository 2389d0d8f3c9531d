package credential

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"
)

const (
	// fetchTimeout ends one try to get a token.
	fetchTimeout = 10 * time.Second
	// margin is how long a token handed out stays valid at least, if its whole
	// life is ten times that.
	margin = time.Minute
	// retryMin and retryMax bound the pause after a failed try; it doubles.
	retryMin = time.Second
	retryMax = 30 * time.Second
	// rejectPause is how soon after one token the next may be refused before
	// new ones seem useless.
	rejectPause = 10 * time.Second
)

var (
	errClosed  = errors.New("access tokens are closed")
	errRefused = errors.New("the service refuses even a new access token")
)

// TokensConfig says whose access tokens to get, and how. Account, Scope and
// Client are required.
type TokensConfig struct {
	Account *ServiceAccount
	Scope   string
	URL     string       // of the token endpoint; default Account.TokenURI
	Client  *http.Client // should follow no redirects: they would carry the assertion along
	Now     func() time.Time
	Logger  *slog.Logger
}

// Tokens keeps one access token of a service account at hand. It is safe for
// concurrent use.
//
// However many ask, at most one request for a token is under way, in a
// goroutine that Close ends. A token is renewed in the background at about
// three quarters of its life; while that fails, the old one is used until it
// ends. After a failure there is a pause, in which whoever needs a token gets
// the failure at once.
type Tokens struct {
	cfg  TokensConfig
	life context.Context // ends with Close
	end  context.CancelFunc
	wg   sync.WaitGroup

	mu       sync.Mutex
	current  token
	renewAt  time.Time
	rejected time.Time // when a token was last refused by the service
	fetch    *fetch    // under way, or nil
	failures int       // in a row
	pauseTo  time.Time
	failure  error // why there is a pause
}

// fetch is one request for a token. Its results are set before done is closed.
type fetch struct {
	done  chan struct{}
	token token
	err   error
}

// NewTokens makes a source that has no token yet. Close must be called.
func NewTokens(cfg TokensConfig) *Tokens {
	cfg.URL = cmp.Or(cfg.URL, cfg.Account.TokenURI)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	t := &Tokens{cfg: cfg}
	t.life, t.end = context.WithCancel(context.Background())
	return t
}

// Close ends a request under way and waits for it.
func (t *Tokens) Close() {
	t.mu.Lock() // so that begin starts nothing after it
	t.end()
	t.mu.Unlock()
	t.wg.Wait()
}

// Get is a valid access token. It waits for one if there is none, and returns
// ctx.Err() when ctx ends first.
func (t *Tokens) Get(ctx context.Context) (string, error) {
	t.mu.Lock()
	now := t.cfg.Now()
	if t.current.value != "" && now.Before(t.current.expires) {
		value := t.current.value
		if !now.Before(t.renewAt) {
			_, _ = t.begin(now) // nobody waits for it
		}
		t.mu.Unlock()
		return value, nil
	}
	f, err := t.begin(now)
	t.mu.Unlock()
	if err != nil {
		return "", fmt.Errorf("access token: %w", err)
	}
	select {
	case <-f.done:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if f.err != nil {
		return "", fmt.Errorf("access token: %w", f.err)
	}
	return f.token.value, nil
}

// Reject tells that the service refused value. If that is the current token, it
// is not handed out again, and Get asks for a new one: at once, unless that one
// comes after another that was refused just now.
func (t *Tokens) Reject(value string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if value == "" || value != t.current.value {
		return // it has been replaced
	}
	now := t.cfg.Now()
	if now.Sub(t.rejected) < rejectPause {
		t.failure, t.pauseTo = errRefused, now.Add(jitter(rejectPause))
	}
	t.current, t.rejected = token{}, now
}

// begin joins the request under way or starts one. t.mu is held.
func (t *Tokens) begin(now time.Time) (*fetch, error) {
	switch {
	case t.life.Err() != nil:
		return nil, errClosed
	case t.fetch != nil:
		return t.fetch, nil
	case now.Before(t.pauseTo):
		return nil, t.failure
	}
	f := &fetch{done: make(chan struct{})}
	t.fetch = f
	t.wg.Go(func() { t.run(f, now) })
	return f, nil
}

func (t *Tokens) run(f *fetch, asked time.Time) {
	ctx, cancel := context.WithTimeout(t.life, fetchTimeout)
	defer cancel()
	f.token, f.err = t.cfg.Account.exchange(ctx, t.cfg.Client, t.cfg.URL, t.cfg.Scope, asked)
	t.mu.Lock()
	defer t.mu.Unlock()
	defer close(f.done)
	t.fetch = nil
	now := t.cfg.Now()
	if f.err != nil {
		t.failures++
		t.failure = f.err
		t.pauseTo = now.Add(jitter(min(retryMin<<min(t.failures-1, 10), retryMax)))
		t.cfg.Logger.Warn("no new access token", "account", t.cfg.Account, "error", f.err, "old_valid_until", t.current.expires)
		return
	}
	if t.failures > 0 {
		t.cfg.Logger.Info("access tokens can be had again", "account", t.cfg.Account, "failures", t.failures)
	}
	life := f.token.expires.Sub(asked)
	t.failures, t.pauseTo = 0, time.Time{}
	t.current = f.token
	t.current.expires = f.token.expires.Add(-min(margin, life/10))
	// Many processes that started together should not renew together.
	t.renewAt = asked.Add(life*3/4 - rand.N(life/10+1))
}

// jitter is between d/2 and d.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }
