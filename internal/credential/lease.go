package credential

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Lease is a Source of secrets that HashiCorp Vault or OpenBao makes for whoever
// reads Path, and takes back when their lease ends: dynamic secrets. URL, Token,
// Path and Field are required.
//
// A lease is renewed ahead of its end
// (https://developer.hashicorp.com/vault/api-docs/system/leases#renew-lease,
// https://openbao.org/api-docs/system/leases/#renew-lease), for as long as that
// brings it half of its first life or more; then, or when it can't be renewed, or
// when the service refuses the secret, a new one is read. The old one is good
// until its lease ends. With the token end the leases that it was used for: see
// https://developer.hashicorp.com/vault/docs/concepts/lease. So a renewable token
// is renewed, too.
//
// What is read there without a lease (KV version 1, static roles) is good for as
// long as nobody says otherwise, and read again and again.
type Lease struct {
	URL       string      // of the server, as https://vault.example:8200
	Token     *Credential // that may read Path
	Namespace string
	Path      string // with the mount, as rabbitmq/creds/mail
	// Field is of the secret's data. Several, as access_key:secret_key, are read
	// into one value with a colon between.
	Field  string
	Every  time.Duration // how often to look for what has no lease; default 30 s
	Client *http.Client  // it follows no redirects, whatever its own policy
	Now    func() time.Time

	// Fetch's alone.
	life  tokenLife
	last  lease
	extra int       // reads in a row that were not planned
	read  time.Time // the last of them
}

// lease is one secret and until when it is good. The zero lease is none.
type lease struct {
	id        string
	value     Secret
	issued    time.Time
	first     time.Duration // of its life, when it was read
	expires   time.Time     // zero: never
	told      time.Time     // expires, as the last Material had it
	renewable bool
	due       time.Time // when to renew or replace it
	token     int       // the generation that it was read with
}

var _ Source = (*Lease)(nil)

func (l *Lease) follows() []*Credential { return []*Credential{l.Token} }

func (l *Lease) String() string {
	return "vault lease of " + strings.Trim(l.Path, "/") + " field " + l.Field
}

// GoString is String, so that %#v shows no secret.
func (l *Lease) GoString() string { return l.String() }

func (l *Lease) identity() string {
	return fmt.Sprintf("%q %q %q %q", l.URL, l.Namespace, l.Path, l.Field)
}

// Fetch renews the lease, or reads a new secret. Whoever calls it before it said
// so wants a new one: the service has refused the last, or the token is another.
func (l *Lease) Fetch(ctx context.Context) (Material, error) {
	server := vaultServer{l.URL, l.Namespace, l.Token, l.Client, clock(l.Now)}
	now := server.now()
	alive := l.last.id != "" && now.Before(l.last.expires)
	upkeep := alive && !l.life.due.IsZero() && !now.Before(l.life.due)
	if alive && (upkeep || !now.Before(l.last.due)) {
		use, err := l.Token.Use(ctx)
		if err != nil {
			return Material{}, err
		}
		if use.Generation() == l.last.token {
			l.life.keep(ctx, server, use, now)
			if now.Before(l.last.due) {
				return l.material(), nil
			}
			good, err := l.renew(ctx, server, use, now)
			if err != nil {
				return Material{}, err
			}
			if l.extra = 0; good {
				return l.material(), nil
			}
		}
	} else if alive {
		// A service that refuses everything must not have secrets made without end.
		if l.extra > 0 && now.Before(l.read.Add(min(rejectMin<<min(l.extra-1, 10), rejectMax))) {
			return l.material(), nil
		}
		l.extra, l.read = l.extra+1, now
	}
	if err := l.make(ctx, server, now); err != nil {
		if alive && l.last.expires.Sub(l.last.told) > time.Second {
			return l.material(), nil // that is something, and the next try follows soon
		}
		return Material{}, err
	}
	return l.material(), nil
}

// renew asks for as much life as the lease had at first. It is good if it got
// half of that; err is for when it may be by asking again.
func (l *Lease) renew(ctx context.Context, s vaultServer, use Use, asked time.Time) (good bool, err error) {
	if !l.last.renewable {
		return false, nil
	}
	in := map[string]any{"lease_id": l.last.id, "increment": int64(l.last.first / time.Second)}
	body, err := s.as(ctx, use, http.MethodPost, vaultPath("sys/leases/renew"), in)
	var e *vaultError
	switch {
	case errors.As(err, &e) && e.final():
		// It is gone, or at its longest life, or the token may not.
		l.last.renewable = false
		return false, nil
	case err != nil:
		return false, fmt.Errorf("renew the lease: %w", err)
	}
	var answer struct {
		Duration  int64 `json:"lease_duration"` // seconds
		Renewable bool  `json:"renewable"`
	}
	if json.Unmarshal(body, &answer) != nil || answer.Duration <= 0 {
		l.last.renewable = false
		return false, nil
	}
	left := vaultLife(answer.Duration)
	if ends := asked.Add(left); ends.After(l.last.expires) {
		l.last.expires = ends
	}
	l.last.renewable = answer.Renewable
	if left < l.last.first/2 {
		l.last.due = asked.Add(retryMin) // should there be no new one
		return false, nil
	}
	l.last.due = next(Material{Expires: l.last.expires}, asked)
	return true, nil
}

// make reads a new secret, and sees to the token.
func (l *Lease) make(ctx context.Context, s vaultServer, asked time.Time) error {
	body, use, err := s.ask(ctx, http.MethodGet, vaultPath(l.Path), nil)
	if err != nil {
		return err
	}
	var answer struct {
		ID        string         `json:"lease_id"`
		Duration  int64          `json:"lease_duration"` // seconds
		Renewable bool           `json:"renewable"`
		Data      map[string]any `json:"data"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return errors.New("vault's answer can't be read")
	}
	var parts []string
	for field := range strings.SplitSeq(l.Field, ":") {
		text, ok := answer.Data[field].(string)
		if !ok || text == "" {
			return fmt.Errorf("the secret in vault has no text in its field %s", field)
		}
		parts = append(parts, text)
	}
	n := lease{id: answer.ID, value: Secret(strings.Join(parts, ":")), token: use.Generation()}
	switch {
	case n.id == "":
		n.due = asked.Add(cmp.Or(l.Every, 30*time.Second))
	case answer.Duration <= 0:
		return errors.New("vault's lease has no duration")
	default:
		n.issued, n.first, n.renewable = asked, vaultLife(answer.Duration), answer.Renewable
		n.expires = asked.Add(n.first)
		n.due = next(Material{Expires: n.expires}, asked)
	}
	l.last = n
	l.life.keep(ctx, s, use, asked)
	return nil
}

// material is the last lease, as the end of the token bounds it.
func (l *Lease) material() Material {
	m := Material{Value: l.last.value, Issued: l.last.issued, Expires: l.last.expires, Next: l.last.due}
	if l.last.id == "" {
		n := readMaterial(l.last.value.Reveal())
		n.Next = m.Next
		return n
	}
	l.last.told = l.last.expires
	m.Label = "lease " + clean(l.last.id[max(0, len(l.last.id)-6):], "")
	if ends := l.life.expires; !ends.IsZero() && ends.Before(m.Expires) {
		m.Expires = ends
	}
	if due := l.life.due; !due.IsZero() && due.Before(m.Next) {
		m.Next = due
	}
	return m
}
