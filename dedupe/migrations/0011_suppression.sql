-- Recipients that a provider said are gone. The door looks them up in a copy of
-- its own, which it keeps up by changed_by.

-- +goose Up

create table suppression (
  id         bigint generated always as identity primary key,
  tenant     int not null references tenant,
  channel    smallint not null,
  digest     bytea not null check (length(digest) = 16), -- of the three of them: an endpoint is longer than an index takes
  recipient  text not null,
  reason     text not null,
  provider   text,
  n          bigint, -- the message that told
  at         timestamptz not null default clock_timestamp(),
  cleared_at timestamptz,
  cleared_by text,
  changed_by xid8 not null default pg_current_xact_id(),
  unique (tenant, channel, digest)
);
create index on suppression (changed_by);
create index on suppression (tenant, id desc) where cleared_at is null;

create function suppression_digest(tenant int, channel smallint, recipient text) returns bytea
language sql immutable strict as $$
  select substring(sha256(convert_to(tenant || ' ' || channel || ' ' || recipient, 'UTF8')) for 16)
$$;

-- suppress_recipient puts the recipient of a message on the list, or back on it.
-- Outcomes of many messages to one recipient come together, so the first one's
-- row stands.
-- +goose StatementBegin
create function suppress_recipient() returns trigger language plpgsql as $$
begin
  insert into suppression as s (tenant, channel, digest, recipient, reason, provider, n)
  select m.tenant, c.channel, suppression_digest(m.tenant, c.channel, m.recipient), m.recipient, new.code, new.provider, m.n
  from message m, lateral (select (m.n >> 59)::smallint as channel) c
  where m.n = new.n and not m.test
  on conflict (tenant, channel, digest) do update
  set reason = excluded.reason, provider = excluded.provider, n = excluded.n, at = clock_timestamp(),
      cleared_at = null, cleared_by = null, changed_by = pg_current_xact_id()
  -- What was cleared since that message was accepted stays cleared: the token may
  -- have been registered again.
  where s.cleared_at < (select accepted_at from message where n = new.n);
  return null;
end $$;
-- +goose StatementEnd

create trigger suppress_recipient after insert on outcome
for each row when (new.kind = 3 and new.code = 'recipient_gone') execute function suppress_recipient();

-- +goose Down
drop trigger suppress_recipient on outcome;
drop function suppress_recipient;
drop function suppression_digest;
drop table suppression;
