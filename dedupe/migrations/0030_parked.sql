-- What waits for a person is found and counted: records of the journals that the ledger
-- refused, although they were answered 202, and messages that are held by themselves.

-- +goose Up

-- What a journal's record tells of its submission, where it can be read. The release
-- before leaves these null.
alter table parked add column submission bytea;      -- the first 24 bytes of its ids
alter table parked add column ids text[];            -- its messages', in order
alter table parked add column tenant int;            -- which may be lost
alter table parked add column lane smallint;
alter table parked add column accepted_at timestamptz;
alter table parked add column canceled bigint not null default 0; -- bit i: the message ids[i + 1]
create unique index parked_submission on parked (submission);
create index parked_journal on parked (at) where source ~ '\.journal\.(transactional|trigger|campaign)/';

-- refused is the journals' parked records; entered: the ledger has come to have the
-- submission since, under its key or under the one that it gets as a key_conflict.
create view refused as
select p.id, p.at, p.reason, p.submission, p.ids, p.tenant, p.lane, p.accepted_at, p.canceled,
  p.submission is not null and exists (
    select from identity i
    where i.key in (encode(substr(p.submission, 1, 16), 'hex')::uuid,
                    encode(substr(sha256('key_conflict'::bytea || p.submission), 1, 16), 'hex')::uuid)
      and substr(i.print, 1, 8) = substr(p.submission, 17)) as entered
from parked p
where p.source ~ '\.journal\.(transactional|trigger|campaign)/';

-- Of all attempts only the holds. While it is built nothing is claimed: about a second for
-- every few million attempts.
create index attempt_held on attempt (at) where kind = 5;

-- held_open is what waits for a person, at most most of each, and of the newest ten times
-- as many holds: by cause how many, and since when.
-- +goose StatementBegin
create function held_open(most int) returns table (cause text, count bigint, since timestamptz)
language plpgsql stable
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan
as $$
begin
  return query
  select x.cause, count(*), min(x.at) from (
    (select case when a.note = 'key_conflict' then 'key_conflict' else 'poison' end as cause, a.at
     from (select h.n, h.no, h.note, h.at from attempt h where h.kind = 5 order by h.at desc limit 10 * most) a
     where not exists (select from outcome o where o.n = a.n and o.no = a.no and o.kind = 5)
     limit most)
    union all
    (select 'parked', u.at from refused u
     where not u.entered and u.canceled is distinct from (1::bigint << cardinality(u.ids)) - 1
     order by u.at limit most)) x
  group by x.cause;
end $$;
-- +goose StatementEnd

-- held_newest is the newest messages that are held by themselves, below a place in order
-- of acceptance, which is what mask leaves of a position.
-- +goose StatementBegin
create function held_newest(tenant_ int, stream_ text, below bigint, mask bigint, most int) returns setof bigint
language plpgsql stable
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan
as $$
begin
  return query
  select a.n from attempt a
  where a.kind = 5 and a.n & mask < below
    and not exists (select from outcome o where o.n = a.n and o.no = a.no and o.kind = 5)
    and (tenant_ = 0 and stream_ = '' or exists (
      select from message m join stream s on s.id = m.stream
      where m.n = a.n and (tenant_ = 0 or m.tenant = tenant_) and (stream_ = '' or s.name = stream_)))
  order by a.n & mask desc limit most;
end $$;
-- +goose StatementEnd

-- +goose Down
drop function held_open, held_newest;
drop index attempt_held;
drop view refused;
drop index parked_journal, parked_submission;
alter table parked drop column submission, drop column ids, drop column tenant, drop column lane, drop column accepted_at, drop column canceled;
