-- A hold of a tag, of one tenant or of all.

-- +goose Up

alter table hold
  add column tag text check (tag ~ '^[A-Za-z0-9._:=-]{1,64}$'),
  drop constraint hold_check,
  add constraint hold_check check (num_nonnulls(lane, provider, coalesce(tag, tenant::text)) = 1);
drop index hold_active;
create unique index hold_active on hold (coalesce(lane, 0), coalesce(tenant, 0), coalesce(provider, ''), coalesce(tag, '')) where released_at is null;

-- tags_of is the tags of canonical content, each with its quotes. Nothing else in
-- it can read "tags":[" than their field: in a text each quote has a backslash
-- before it. So no content is parsed, however large, and none can raise an error.
-- +goose StatementBegin
create function tags_of(body bytea) returns text[] language plpgsql immutable strict as $$
declare
  field constant bytea := convert_to('"tags":[', 'UTF8');
  at    int := position(field || '"' in body);
begin
  if at = 0 then
    return '{}';
  end if;
  body := substring(body from at + length(field));
  return string_to_array(encode(substring(body for greatest(position(']'::bytea in body) - 1, 0)), 'escape'), ',');
end $$;
-- +goose StatementEnd

-- hold_back says which of those that are about to be claimed are held. Those of
-- a held lane or provider stay with the asker (verdict 7); those of a held
-- tenant or tag, which shares its lane with others, are set aside (verdict 3). What
-- has expired, or was claimed already, is for claim_batch to tell. A release waits
-- for the transactions that may still set something aside. Content is read only
-- of tenants that a held tag concerns.
-- +goose StatementBegin
create or replace function hold_back(ns bigint[], nos smallint[], ids bytea[], providers text[]) returns table (ord int, verdict smallint)
language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
declare
  now_   timestamptz;
  active bigint[];
  tagged bigint[];
begin
  select array_agg(x.id), array_agg(x.id) filter (where x.tag is not null) into active, tagged
  from (select h.id, h.tag from hold h where not h.done and h.released_at is null order by h.id for share) x;
  if active is null then
    return;
  end if;
  now_ := clock_timestamp();
  return query
  with asked as materialized (
    select u.n, u.no, u.ord::int, m.expires_at, u.provider, m.tenant,
      case when exists (select from hold h where h.id = any (tagged) and coalesce(h.tenant = m.tenant, true))
        then (select tags_of(c.body) from content c where c.n = u.n & ~63::bigint) end as tags
    from unnest(ns, nos, ids, providers) with ordinality as u(n, no, id, provider, ord)
    cross join lateral (select x.tenant, x.expires_at from message x where x.n = u.n and x.id = u.id offset 0) m
    where m.expires_at > now_ and not exists (select from attempt t where t.n = u.n and t.no = u.no)
  ), kept as materialized (
    select a.ord from asked a
    where exists (select from hold h where h.id = any (active) and (h.lane = a.n >> 57 or h.provider = a.provider))
  ), aside as materialized (
    select distinct on (a.ord) a.*, h.id as hold
    from asked a join hold h on h.id = any (active) and h.lane is null and h.provider is null
      and coalesce(h.tenant = a.tenant, true) and (h.tag is null or '"' || h.tag || '"' = any (a.tags))
    where not exists (select from kept k where k.ord = a.ord)
    order by a.ord, h.id
  ), later as (
    update waiting w set due = a.expires_at, held = a.hold from aside a
    where w.n = a.n and w.no = a.no and w.due <= now_
    returning w.n
  ), fresh as (
    insert into waiting (n, no, lane, due, held)
    select a.n, 1, a.n >> 57, a.expires_at, a.hold from aside a
    where a.no = 1 and not exists (select from waiting w where w.n = a.n)
    order by a.n
    on conflict do nothing
    returning waiting.n
  )
  select k.ord, 7::smallint from kept k
  union all
  select a.ord, 3::smallint from aside a join (select l.n from later l union all select f.n from fresh f) x on x.n = a.n;
end $$;
-- +goose StatementEnd

-- +goose Down
-- The function of 0004 is not brought back: this only clears the way for its own Down.
drop function tags_of;
delete from hold where tag is not null;
alter table hold drop column tag;
