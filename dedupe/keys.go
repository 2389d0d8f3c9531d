package dedupe

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/message"
)

// Keys implements keyring.Source: all keys, revoked ones too.
func (l *Ledger) Keys(ctx context.Context) ([]keyring.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
		select k.id, k.tenant, t.name, k.prefix, k.hash, k.scopes, k.test, t.domains, k.revoked_at is not null
		from api_key k join tenant t on t.id = k.tenant order by k.id`)
	if err != nil {
		return nil, unavailable("keys", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (keyring.Record, error) {
		var r keyring.Record
		var hash []byte
		var scopes []string
		err := row.Scan(&r.ID, &r.Tenant, &r.TenantName, &r.Prefix, &hash, &scopes, &r.Test, &r.Domains, &r.Revoked)
		if err == nil && len(hash) == len(r.Hash) {
			r.Hash = [32]byte(hash)
		}
		for _, s := range scopes {
			r.Scopes = append(r.Scopes, keyring.Scope(s))
		}
		return r, err
	})
	if err != nil {
		return nil, unavailable("keys", err)
	}
	return all, nil
}

// SetTenant makes a tenant, or changes which sender domains it may use, and
// answers with its number. Nil domains leave an existing tenant's as they are.
func (l *Ledger) SetTenant(ctx context.Context, name string, domains []string) (int32, error) {
	var id int32
	err := l.pool.QueryRow(ctx, `
		insert into tenant as t (name, domains) values ($1, coalesce($2::text[], '{}'))
		on conflict (name) do update set domains = coalesce($2::text[], t.domains) returning id`, name, domains).Scan(&id)
	switch {
	case err != nil && blameFor(err) == blameRow:
		return 0, message.FieldErrors{{Field: "tenant", Problem: "want 1 to 63 of a-z, 0-9 and -, not starting with -"}}
	case err != nil:
		return 0, unavailable("tenant", err)
	}
	return id, nil
}

// TenantName implements delivery.Ledger. Names never change.
func (l *Ledger) TenantName(ctx context.Context, id int32) (string, error) {
	if name, ok := l.tenants.Load(id); ok {
		return name.(string), nil
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	var name string
	err := l.pool.QueryRow(ctx, `select name from tenant where id = $1`, id).Scan(&name)
	switch {
	case noRows(err):
		return "", nil
	case err != nil:
		return "", unavailable("tenant", err)
	}
	l.tenants.Store(id, name)
	return name, nil
}

// AddKey keeps a minted key of a tenant.
func (l *Ledger) AddKey(ctx context.Context, r keyring.Record) (int64, error) {
	scopes := make([]string, len(r.Scopes))
	for i, s := range r.Scopes {
		scopes[i] = string(s)
	}
	var id int64
	if err := l.pool.QueryRow(ctx, `insert into api_key (tenant, prefix, hash, scopes, test) values ($1, $2, $3, $4, $5) returning id`,
		r.Tenant, r.Prefix, r.Hash[:], scopes, r.Test).Scan(&id); err != nil {
		if blameFor(err) == blameRow {
			return 0, fmt.Errorf("add key: %w", err)
		}
		return 0, unavailable("add key", err)
	}
	return id, nil
}

// RevokeKey revokes the key with a prefix; message.ErrNotFound if there is none.
func (l *Ledger) RevokeKey(ctx context.Context, prefix string) error {
	tag, err := l.pool.Exec(ctx, `update api_key set revoked_at = coalesce(revoked_at, clock_timestamp()) where prefix = $1`, prefix)
	switch {
	case err != nil:
		return unavailable("revoke key", err)
	case tag.RowsAffected() == 0:
		return message.ErrNotFound
	}
	return nil
}
