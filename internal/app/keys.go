package app

import (
	"context"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/internal/keyring"
)

// CreateKey makes a key, and its tenant if that is new, in the ledger. It
// returns the key's text, which nothing else keeps. Nil domains leave an
// existing tenant's as they are.
func CreateKey(ctx context.Context, l *dedupe.Ledger, tenant string, domains []string, scopes []keyring.Scope, test bool) (string, keyring.Record, error) {
	id, err := l.SetTenant(ctx, tenant, domains)
	if err != nil {
		return "", keyring.Record{}, err
	}
	text, rec := keyring.Mint(test)
	rec.Tenant, rec.TenantName, rec.Scopes = id, tenant, scopes
	rec.ID, err = l.AddKey(ctx, rec)
	return text, rec, err
}
