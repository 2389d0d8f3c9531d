-- What the journal kept while the ledger was away comes in through accept_batch.

-- +goose Up

-- When a message came out of the journal; null for all others, whose
-- accepted_at ascends with their position.
alter table message add column entered_at timestamptz;

-- enter_batch is accept_batch for submissions out of the journal. accepteds is
-- when each was accepted at the door. ids has, for one that is to be held since
-- another request came first under its key, the first 24 bytes of its own id: its
-- key here is derived, and would make another.
-- +goose StatementBegin
create function enter_batch(
  keys uuid[], prints bytea[], lanes smallint[], tenants int[], streams bigint[], counts smallint[],
  bodies bytea[], traces text[], tests boolean[], expiries timestamptz[], send_ats timestamptz[],
  owners int[], indexes smallint[], recipients text[], supersedes bytea[], accepteds timestamptz[], ids bytea[])
returns table (ord int, submission bigint, first bigint, waits boolean)
language plpgsql
set enable_seqscan = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan
as $$
declare
  ords        int[];
  submissions bigint[];
  firsts      bigint[];
  waiting_    boolean[];
  held_        bigint[];
begin
  select array_agg(b.ord), array_agg(b.submission), array_agg(b.first), array_agg(b.waits)
  into ords, submissions, firsts, waiting_
  from accept_batch(keys, prints, lanes, tenants, streams, counts, bodies, traces, tests, expiries, send_ats, owners, indexes, recipients,
    supersedes, accepteds) b;
  if ords is null then
    return;
  end if;
  update message m set entered_at = clock_timestamp(), id = coalesce(x.id, m.id)
  from (
    select (lanes[f.ord]::bigint << 57) | (f.submission << 6) | r.index as n, ids[f.ord] as id
    from unnest(ords, submissions) as f(ord, submission)
    join unnest(owners, indexes) as r(owner, index) on r.owner = f.ord
    offset 0
  ) x where m.n = x.n;
  select array_agg((lanes[f.ord]::bigint << 57) | (f.submission << 6) | r.index) into held_
  from unnest(ords, submissions) as f(ord, submission)
  join unnest(owners, indexes) as r(owner, index) on r.owner = f.ord
  where ids[f.ord] is not null;
  if held_ is not null then
    insert into attempt (n, no, kind, worker, token, at, note)
    select h, 1, 5, 0, 0, clock_timestamp(), 'key_conflict' from unnest(held_) h order by h;
    delete from waiting w where w.n = any (held_);
  end if;
  return query select * from unnest(ords, submissions, firsts, waiting_);
end $$;
-- +goose StatementEnd

-- +goose Down
drop function enter_batch;
alter table message drop column entered_at;
