package credential

import (
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"slices"
)

// maxChains is how many configured refresh tokens are remembered: a rolling
// deploy has two.
const maxChains = 4

// chain is the refresh token that a server gave instead of a configured one, or
// of one that it gave before.
type chain struct {
	Of      [sha256.Size]byte `json:"of"` // of the configured one
	Token   string            `json:"token"`
	Refused bool              `json:"refused"` // so the configured one is tried first
}

// replaced is an OAuth2's chains, the newest first. OAuth2.mu guards it.
//
// A token that can be used once must not be lost, nor used by two. So who
// refreshes locks the slot in the safe, reads which token is the newest, asks,
// writes the new one, and only then uses what came with it:
//
//   - Killed before the server has the request, or while another process
//     refreshes: the newest is on disk.
//   - Killed after the write: the same.
//   - Killed after the server has replaced the token, and before the answer is
//     written: the old one is on disk. No client can close this gap; servers
//     that take the old one until the new one is used (a grace period) do.
//   - The disk fails: the token is in memory, a log line says so, and it is
//     written before the next is asked for, if the disk works then.
type replaced struct {
	chains []chain
	dirty  bool // the safe lacks what is here
	warned bool // that it can't be read
}

func (o *OAuth2) slot() slot {
	return slot{o.Safe, o.Name, "refresh", o.URL + " " + o.ClientID}
}

// begin locks the safe, if there is one, and reads it. done unlocks it. An error
// means that somebody else refreshes until ctx ends.
func (r *replaced) begin(ctx context.Context, o *OAuth2) (done func(), err error) {
	if o.Safe == nil {
		return func() {}, nil
	}
	done, err = o.slot().lock(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		o.Safe.log.Warn("credential's refresh tokens can't be locked: other processes might use the same one", "credential", o.Name, "error", err)
		done = func() {}
	}
	if r.dirty {
		r.save(o)
		return done, nil
	}
	var chains []chain
	err = o.slot().load(&chains)
	switch {
	case err == nil:
		r.chains, r.warned = chains, false
	case errors.Is(err, fs.ErrNotExist):
		if r.chains != nil { // somebody emptied it
			r.save(o)
		}
	case !r.warned:
		o.Safe.log.Warn("credential's kept refresh token is not used", "credential", o.Name, "folder", o.Safe.String(), "reason", err)
		r.warned = true
	}
	return done, nil
}

func (r *replaced) of(configured string) *chain {
	hash := sha256.Sum256([]byte(configured))
	if i := slices.IndexFunc(r.chains, func(c chain) bool { return c.Of == hash }); i >= 0 {
		return &r.chains[i]
	}
	return nil
}

// instead is the refresh token to show.
func (r *replaced) instead(configured string) string {
	if c := r.of(configured); c != nil && !c.Refused {
		return c.Token
	}
	return configured
}

// refused notes that the server took shown no more. The other of the two goes
// first the next time: nothing that was good once is thrown away.
func (r *replaced) refused(o *OAuth2, configured, shown string) {
	if c := r.of(configured); c != nil && c.Refused != (shown != configured) {
		c.Refused = shown != configured
		r.save(o)
	}
}

// put keeps token, which the server gave.
func (r *replaced) put(o *OAuth2, configured, token string) {
	hash := sha256.Sum256([]byte(configured))
	r.chains = slices.DeleteFunc(r.chains, func(c chain) bool { return c.Of == hash })
	r.chains = slices.Insert(r.chains, 0, chain{Of: hash, Token: token})
	r.chains = r.chains[:min(len(r.chains), maxChains)]
	r.save(o)
}

func (r *replaced) save(o *OAuth2) {
	if o.Safe == nil {
		return
	}
	err := o.slot().save(r.chains)
	r.dirty = err != nil
	if err != nil {
		o.Safe.log.Error("credential's new refresh token can't be kept: it is lost if this process ends before it can",
			"credential", o.Name, "folder", o.Safe.String(), "error", err)
	}
}
