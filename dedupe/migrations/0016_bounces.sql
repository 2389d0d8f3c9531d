-- Addresses that bounced for good, or whose readers complained, are suppressed as
-- well. An email address is the same however its name and case are written.

-- +goose Up
create function suppression_recipient(channel smallint, recipient text) returns text
language sql immutable strict as $$
  select case when channel = 1 then translate(btrim(coalesce(substring(recipient from '<([^<>]*)> *$'), recipient)),
    'ABCDEFGHIJKLMNOPQRSTUVWXYZ', 'abcdefghijklmnopqrstuvwxyz') else recipient end
$$;

create or replace function suppression_digest(tenant int, channel smallint, recipient text) returns bytea
language sql immutable strict as $$
  select substring(sha256(convert_to(tenant || ' ' || channel || ' ' || suppression_recipient(channel, recipient), 'UTF8')) for 16)
$$;

-- suppress_message puts the recipient of a message on the list, or back on it.
-- What many messages to one recipient bring comes together, so the first one's
-- row stands.
-- +goose StatementBegin
create function suppress_message(n_ bigint, reason_ text, provider_ text) returns void language plpgsql as $$
begin
  insert into suppression as s (tenant, channel, digest, recipient, reason, provider, n)
  select m.tenant, c.channel, suppression_digest(m.tenant, c.channel, m.recipient), suppression_recipient(c.channel, m.recipient), reason_, provider_, m.n
  from message m, lateral (select (m.n >> 59)::smallint as channel) c
  where m.n = n_ and not m.test
  on conflict (tenant, channel, digest) do update
  set reason = excluded.reason, provider = excluded.provider, n = excluded.n, at = clock_timestamp(),
      cleared_at = null, cleared_by = null, changed_by = pg_current_xact_id()
  -- What was cleared since that message was accepted stays cleared: the token may
  -- have been registered again, the mailbox opened.
  where s.cleared_at < (select accepted_at from message where n = n_);
end $$;
-- +goose StatementEnd

-- +goose StatementBegin
create or replace function suppress_recipient() returns trigger language plpgsql as $$
begin
  perform suppress_message(new.n, new.code, new.provider);
  return null;
end $$;
-- +goose StatementEnd

-- +goose StatementBegin
create function suppress_told() returns trigger language plpgsql as $$
begin
  perform suppress_message(new.n, case new.kind when 'bounced' then 'recipient_gone' else new.kind end, new.provider);
  return null;
end $$;
-- +goose StatementEnd

create trigger suppress_told after insert on event
for each row when (new.kind in ('bounced', 'complained')) execute function suppress_told();

-- +goose Down
drop trigger suppress_told on event;
drop function suppress_told;
-- +goose StatementBegin
create or replace function suppress_recipient() returns trigger language plpgsql as $$
begin
  insert into suppression as s (tenant, channel, digest, recipient, reason, provider, n)
  select m.tenant, c.channel, suppression_digest(m.tenant, c.channel, m.recipient), m.recipient, new.code, new.provider, m.n
  from message m, lateral (select (m.n >> 59)::smallint as channel) c
  where m.n = new.n and not m.test
  on conflict (tenant, channel, digest) do update
  set reason = excluded.reason, provider = excluded.provider, n = excluded.n, at = clock_timestamp(),
      cleared_at = null, cleared_by = null, changed_by = pg_current_xact_id()
  where s.cleared_at < (select accepted_at from message where n = new.n);
  return null;
end $$;
-- +goose StatementEnd
create or replace function suppression_digest(tenant int, channel smallint, recipient text) returns bytea
language sql immutable strict as $$
  select substring(sha256(convert_to(tenant || ' ' || channel || ' ' || recipient, 'UTF8')) for 16)
$$;
drop function suppress_message;
drop function suppression_recipient;
