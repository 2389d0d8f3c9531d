package keyring

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	refreshEvery = time.Second
	refreshLimit = 5 * time.Second
)

// ErrUnauthorized is Verify's one answer to a key that is missing, malformed,
// unknown, wrong or revoked.
var ErrUnauthorized = errors.New("unauthorized")

// errNoKeys says that the ring never had keys from anywhere.
var errNoKeys = errors.New("API keys were never loaded")

// Source is where keys are kept: the ledger.
type Source interface {
	// Keys is every key, revoked ones included or left out.
	Keys(ctx context.Context) ([]Record, error)
}

// Ring verifies keys. Reading it takes no lock; a revocation is seen within
// about a second while the source answers. While it doesn't, the keys last seen
// go on working: a key revoked then keeps working until it answers again.
type Ring struct {
	path   string
	source Source
	log    *slog.Logger
	now    func() time.Time

	keys atomic.Pointer[keySet] // nil until there are any

	mu    sync.Mutex // held by a Refresh
	saved []byte     // the snapshot's keys, as last read or written
}

type keySet struct {
	byPrefix map[string]entry
	asOf     time.Time
}

type entry struct {
	hash      [32]byte
	principal *Principal
}

// Open makes a ring from the snapshot at path, if there is one. A snapshot that
// can't be read or trusted is logged and left aside: the source has the keys.
func Open(path string, source Source, log *slog.Logger, now func() time.Time) *Ring {
	r := &Ring{path: path, source: source, log: log, now: now}
	s, err := load(path)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			log.Error("key snapshot not used", "path", path, "error", err)
		}
		return r
	}
	r.saved = s.Keys
	records, err := s.records()
	if err != nil {
		log.Error("key snapshot not used", "path", path, "error", err)
		r.saved = nil
		return r
	}
	r.use(records, s.AsOf)
	return r
}

// Run refreshes the ring every second until ctx ends.
func (r *Ring) Run(ctx context.Context) {
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	failing := false
	for {
		err := r.Refresh(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !failing:
			r.log.Warn("API keys are not refreshed", "as_of", r.AsOf(), "error", err)
		case err == nil && failing:
			r.log.Info("API keys are refreshed again")
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Refresh takes over the source's keys and writes the snapshot when they have
// changed. Keys that couldn't be written are used all the same.
func (r *Ring) Refresh(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, refreshLimit)
	defer cancel()
	records, err := r.source.Keys(ctx)
	if err != nil {
		return fmt.Errorf("refresh API keys: %w", err)
	}
	now := r.now()
	r.use(records, now)
	keys, err := encode(records)
	if err != nil {
		return fmt.Errorf("refresh API keys: %w", err)
	}
	if bytes.Equal(keys, r.saved) {
		return nil
	}
	if err := store(r.path, snapshot{Version: snapshotVersion, AsOf: now, Keys: keys}); err != nil {
		return fmt.Errorf("save API keys: %w", err)
	}
	r.saved = keys
	return nil
}

// AsOf is when the keys in use were read from the source; zero for none.
func (r *Ring) AsOf() time.Time {
	if k := r.keys.Load(); k != nil {
		return k.asOf
	}
	return time.Time{}
}

// Ready fails while the ring has no keys from anywhere.
func (r *Ring) Ready() error {
	if r.keys.Load() == nil {
		return errNoKeys
	}
	return nil
}

// Verify answers who text stands for, or ErrUnauthorized. It takes the same
// steps whether the prefix is known or not. A ring that never had keys can't
// tell a good one from a bad one: that is message.ErrUnavailable.
func (r *Ring) Verify(text string) (*Principal, error) {
	prefix, wellFormed := prefixOf(text)
	if !wellFormed {
		return nil, ErrUnauthorized
	}
	keys := r.keys.Load()
	if keys == nil {
		return nil, fmt.Errorf("%w: %w", message.ErrUnavailable, errNoKeys)
	}
	known := keys.byPrefix[prefix]
	hash := sha256.Sum256([]byte(text))
	same := subtle.ConstantTimeCompare(hash[:], known.hash[:]) == 1
	if !same || known.principal == nil {
		return nil, ErrUnauthorized
	}
	return known.principal, nil
}

func (r *Ring) use(records []Record, asOf time.Time) {
	set := &keySet{byPrefix: make(map[string]entry, len(records)), asOf: asOf}
	for _, rec := range records {
		// Tenant 0 stands for everybody's messages, which is an operator's
		// alone to see; such a record can only come of tampering.
		if rec.Revoked || rec.Tenant == 0 && !slices.Contains(rec.Scopes, Operator) {
			continue
		}
		set.byPrefix[rec.Prefix] = entry{rec.Hash, &Principal{
			Tenant: rec.Tenant, TenantName: rec.TenantName, KeyID: rec.ID, Prefix: rec.Prefix, Test: rec.Test,
			Domains: rec.Domains, Scopes: rec.Scopes,
		}}
	}
	r.keys.Store(set)
}
