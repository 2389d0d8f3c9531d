-- accept_rows takes a body by its place in bodies: unnest copies it once more.

-- +goose Up
-- +goose StatementBegin
create or replace function accept_rows(
  keys uuid[], prints bytea[], lanes smallint[], tenants int[], streams bigint[], counts smallint[],
  bodies bytea[], traces text[], tests boolean[], expiries timestamptz[], send_ats timestamptz[],
  owners int[], indexes smallint[], recipients text[], accepteds timestamptz[])
returns table (ord int, submission bigint, first bigint, waits boolean)
language plpgsql
as $$
declare
  now_ timestamptz;
  lost bigint;
begin
  perform ledger_stands();
  perform pg_current_xact_id();
  now_ := clock_timestamp();
  -- Locks in one order: counters by stream, identities by key, supersede keys.
  perform from counter c where c.stream = any (streams) order by c.stream for update;
  select s into lost from unnest(streams) s where not exists (select from counter c where c.stream = s) limit 1;
  if lost is not null then
    raise exception 'stream % has lost its counter', lost using errcode = 'SP001';
  end if;
  return query
  with sub as (
    select * from unnest(keys, prints, lanes, tenants, streams, counts, traces, tests, expiries, send_ats, accepteds)
      with ordinality as u(key, print, lane, tenant, stream, count, trace, test, expires_at, send_at, accepted_at, ord)
  ), fresh as (
    insert into identity as i (key, submission, lane, count, print)
    select u.key, nextval('position'), u.lane, u.count, u.print from sub u order by u.key
    on conflict (key) do nothing
    returning i.key, i.submission
  ), num as materialized (
    select u.ord::int, f.submission, (u.lane::bigint << 57) | (f.submission << 6) as n, u.stream, u.count, u.tenant, u.test,
           u.trace, u.expires_at, u.send_at, u.lane, coalesce(least(u.accepted_at, now_), now_) as accepted_at,
           uuid_send(u.key) || substr(u.print, 1, 8) as id,
           (c.last + sum(u.count) over (partition by u.stream order by f.submission) - u.count + 1)::bigint as first,
           coalesce(u.send_at > now_, false) as waits
    from fresh f join sub u on u.key = f.key join counter c on c.stream = u.stream
  ), counted as (
    update counter c set last = x.last
    from (select num.stream, max(num.first + num.count - 1) as last from num group by num.stream) x
    where c.stream = x.stream
  ), kept as (
    insert into content (n, body) select num.n, bodies[num.ord] from num
  ), entered as (
    insert into message (n, stream, seq, tenant, test, id, recipient, accepted_at, expires_at, trace)
    select num.n | r.index, num.stream, num.first + r.index, num.tenant, num.test, num.id, r.recipient, num.accepted_at, num.expires_at, num.trace
    from num join unnest(owners, indexes, recipients) as r(owner, index, recipient) on r.owner = num.ord
    order by 1
  ), scheduled as (
    insert into waiting (n, no, lane, due)
    select num.n | r.index, 1, num.lane, num.send_at
    from num join unnest(owners, indexes) as r(owner, index) on r.owner = num.ord
    where num.waits
  )
  select num.ord, num.submission, num.first, num.waits from num;
end $$;
-- +goose StatementEnd

-- +goose Down
-- The function does the same for those that came before: it stays.
