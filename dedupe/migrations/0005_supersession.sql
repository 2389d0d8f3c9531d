-- Supersession: of a tenant's messages with one supersede key only the newest is
-- sent. Messages without a key have no row here and take no lock for it.

-- +goose Up

-- The newest submission under each key: by time of acceptance at the door, then
-- by number. Its row is the lock of whoever accepts under the key.
create table newest (
  key   bytea primary key check (octet_length(key) = 16), -- hash of tenant and key
  at    timestamptz not null,
  n     bigint not null, -- of its first message
  id    bytea not null,  -- the first 24 bytes of its id
  prior bigint           -- the one that it took the place of
) with (fillfactor = 70);

-- Submissions that a newer one stands in for. None of their messages is
-- attempted any more; what was open, or in doubt, keeps its course.
create table superseded (
  n  bigint primary key, -- of the first message
  by bytea not null      -- the first 24 bytes of the newer one's id
);

-- end_message ends a message that certainly was not handed over, by an attempt
-- of a kind, and says whether it has that end now. A lost race is decided by the
-- attempt's key.
-- +goose StatementBegin
create function end_message(n_ bigint, kind_ smallint, worker_ int, note_ text) returns boolean language plpgsql as $$
declare
  last attempt;
  made int;
begin
  for i in 1..5 loop
    select * into last from attempt a where a.n = n_ order by a.no desc limit 1;
    if last.kind = kind_ then
      return true;
    end if;
    if last.kind = 5 then
      insert into outcome (n, no, kind, at, code) values (n_, last.no, 5, clock_timestamp(), 'released') on conflict do nothing;
    elsif last.n is not null and not coalesce(
      (select d.kind = 'resend' from decision d where d.n = n_ and d.no = last.no),
      exists (select from outcome o where o.n = n_ and o.no = last.no and o.kind in (2, 5))) then
      return false;
    end if;
    insert into attempt (n, no, kind, worker, token, at, note)
    values (n_, coalesce(last.no, 0) + 1, kind_, worker_, 0, clock_timestamp(), note_)
    on conflict do nothing;
    get diagnostics made = row_count;
    if made = 1 then
      delete from waiting where n = n_;
      return true;
    end if;
  end loop;
  return false;
end $$;
-- +goose StatementEnd

-- +goose StatementBegin
create or replace function cancel_message(n_ bigint, worker_ int) returns boolean language plpgsql as $$
begin
  perform pg_current_xact_id();
  return end_message(n_, 2::smallint, worker_, null);
end $$;
-- +goose StatementEnd

-- supersede brings fresh submissions, by their first messages, under their keys.
-- Of each key all but the newest end, those of this transaction as well.
--
-- The keys are locked in order, after counters and identities. Every statement
-- after that sees what others under these keys have committed, so the newest is
-- known for certain. A claim of an older message that commits first is met by
-- its attempt's key here; one that begins after this commit sees superseded.
-- +goose StatementBegin
create function supersede(ns bigint[], keys bytea[]) returns void language plpgsql as $$
declare
  within constant bigint := (1::bigint << 57) - 1; -- a position without its lane: ascends over all lanes
  r  record;
  n_ bigint;
begin
  insert into newest as k (key, at, n, id)
  select x.key, x.at, x.n, x.id from (
    select distinct on (u.key) u.key, m.accepted_at as at, u.n, m.id
    from unnest(ns, keys) as u(n, key)
    cross join lateral (select m.accepted_at, m.id from message m where m.n = u.n offset 0) m
    order by u.key, m.accepted_at desc, (u.n & within) desc) x
  order by x.key
  on conflict (key) do update set at = excluded.at, n = excluded.n, id = excluded.id, prior = k.n
  where (k.at, k.n & within) < (excluded.at, excluded.n & within);

  for r in
    select u.n, k.id from unnest(ns, keys) as u(n, key)
    cross join lateral (select k.n, k.id from newest k where k.key = u.key offset 0) k
    where k.n <> u.n
    union
    select k.prior, k.id from unnest(keys) as u(key)
    cross join lateral (select k.n, k.id, k.prior from newest k where k.key = u.key offset 0) k
    where k.n = any (ns) and k.prior is not null
    order by 1
  loop
    insert into superseded (n, by) values (r.n, r.id) on conflict do nothing;
    for n_ in select m.n from message m where m.n >= r.n and m.n <= r.n | 63 order by m.n loop
      perform end_message(n_, 4::smallint, 0, encode(r.id, 'hex'));
    end loop;
  end loop;
end $$;
-- +goose StatementEnd

-- accept_rows is accept_batch without its supersede keys.
-- +goose StatementBegin
create function accept_rows(
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
    on conflict do nothing
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
    -- Bodies go straight to their table, past the steps that sort and keep rows.
    insert into content (n, body)
    select num.n, b.body from unnest(bodies) with ordinality as b(body, ord) join num on num.ord = b.ord
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

-- accept_batch keeps submissions and numbers their messages. The arrays of
-- submissions run in parallel; recipients are all submissions' in order, owner
-- and index say whose and which. It returns the fresh ones: those whose key is
-- known are not returned. Keys are distinct within a batch.
--
-- supersedes has the hash of each one's supersede key, or null; accepteds the
-- time at which each came in at the door, null for now. One ahead of this
-- clock counts as now: else it would supersede what is yet to come.
drop function accept_batch;
-- +goose StatementBegin
create function accept_batch(
  keys uuid[], prints bytea[], lanes smallint[], tenants int[], streams bigint[], counts smallint[],
  bodies bytea[], traces text[], tests boolean[], expiries timestamptz[], send_ats timestamptz[],
  owners int[], indexes smallint[], recipients text[], supersedes bytea[] default null, accepteds timestamptz[] default null)
returns table (ord int, submission bigint, first bigint, waits boolean)
language plpgsql
set enable_seqscan = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan
as $$
declare
  ns    bigint[];
  under bytea[];
begin
  if supersedes is null then
    return query select * from accept_rows(keys, prints, lanes, tenants, streams, counts, bodies, traces, tests, expiries, send_ats,
      owners, indexes, recipients, accepteds);
    return;
  end if;
  for ord, submission, first, waits in
    select * from accept_rows(keys, prints, lanes, tenants, streams, counts, bodies, traces, tests, expiries, send_ats,
      owners, indexes, recipients, accepteds)
  loop
    if supersedes[ord] is not null then
      ns := ns || ((lanes[ord]::bigint << 57) | (submission << 6));
      under := under || supersedes[ord];
    end if;
    return next;
  end loop;
  if ns is not null then
    perform supersede(ns, under);
  end if;
end $$;
-- +goose StatementEnd

-- claim_batch makes attempts, for those that may be made. The leave to make
-- attempt no is: no waiting row for a first attempt, else a waiting row of that
-- very number that is due (or whose message has expired or is superseded). A
-- message past its life, or with a newer one under its key, gets its end
-- instead. Verdicts are message.ClaimVerdict; asking again with the same token
-- gives the same answer.
-- +goose StatementBegin
create or replace function claim_batch(ns bigint[], nos smallint[], ids bytea[], tokens bigint[], worker_ int)
returns table (ord int, verdict smallint, tenant int, test boolean, recipient text, expires_at timestamptz, life float8)
language plpgsql
set enable_seqscan = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan
as $$
declare
  now_  timestamptz;
  freed bigint[];
  used  smallint[];
  made  int;
  keyed boolean;
begin
  perform pg_current_xact_id();
  if exists (select from process p where p.id = worker_ and p.given_up_at is not null) then
    raise exception 'process % was given up: it must beat before it claims', worker_ using errcode = 'SP003';
  end if;
  keyed := exists (select from superseded); -- else nobody pays for keys
  now_ := clock_timestamp();
  -- offset 0 keeps each look-up an index probe, whatever the planner believes.
  return query
  with may as materialized (
    select a.n, a.no, a.token, a.ord::int, m.tenant, m.test, m.recipient, m.expires_at, s.by
    from unnest(ns, nos, ids, tokens) with ordinality as a(n, no, id, token, ord)
    cross join lateral (select * from message m where m.n = a.n and m.id = a.id offset 0) m
    left join lateral (select w.no, w.due from waiting w where w.n = a.n offset 0) w on true
    left join lateral (select s.by from superseded s where keyed and s.n = a.n & ~63::bigint offset 0) s on true
    where case when w.no is null then a.no = 1 else w.no = a.no and (w.due <= now_ or m.expires_at <= now_ or s.by is not null) end
  ), ins as (
    insert into attempt as t (n, no, kind, worker, token, at, note)
    select may.n, may.no, case when may.by is not null then 4 when may.expires_at <= now_ then 3 else 1 end, worker_, may.token, now_,
      encode(may.by, 'hex')
    from may order by may.n
    on conflict do nothing
    returning t.n, t.token, t.kind
  )
  select may.ord, (case ins.kind when 3 then 4 when 4 then 2 else 1 end)::smallint, may.tenant, may.test, may.recipient, may.expires_at,
    extract(epoch from may.expires_at - now_)::float8
  from ins join may on may.n = ins.n and may.token = ins.token;
  get diagnostics made = row_count;

  -- The leave goes with the attempt that used it, and no later one.
  select array_agg(w.n), array_agg(w.no) into freed, used
  from unnest(ns, nos) as a(n, no) join waiting w on w.n = a.n and w.no = a.no
  where exists (select from attempt t where t.n = a.n and t.no = a.no);
  if freed is not null then
    delete from waiting w using unnest(freed, used) as f(n, no) where w.n = f.n and w.no = f.no;
  end if;
  if made = cardinality(ns) then
    return;
  end if;

  -- The loser of a race sees the winner's row only now.
  return query
  select a.ord::int,
    (case when t.token = a.token and t.kind = 1 then 1
          when t.token = a.token and t.kind = 3 then 4
          when t.no is not null then 2
          when m.n is null then case when a.n <= (select l.floor from lane l where l.code = a.n >> 57) then 2 else 5 end
          when w.no = a.no then 3
          else 6 end)::smallint,
    m.tenant, m.test, m.recipient, m.expires_at, extract(epoch from m.expires_at - now_)::float8
  from unnest(ns, nos, ids, tokens) with ordinality as a(n, no, id, token, ord)
  left join lateral (select * from message m where m.n = a.n and m.id = a.id offset 0) m on true
  left join lateral (select t.no, t.token, t.kind, t.at from attempt t where t.n = a.n and t.no = a.no offset 0) t on true
  left join lateral (select w.no from waiting w where w.n = a.n offset 0) w on true
  where t.token is distinct from a.token or t.at <> now_;
end $$;
-- +goose StatementEnd

-- record_batch records how attempts ended. waits is the time to the next
-- attempt after deferred and returned, which a superseded message doesn't wait
-- for: its next claim ends it. policy names who has an unknown resent. plain
-- promises that all are sent.
-- +goose StatementBegin
create or replace function record_batch(
  ns bigint[], nos smallint[], kinds smallint[], providers text[], codes text[], replies text[], refs text[],
  waits float8[], policies text[], plain boolean)
returns void
language plpgsql
set enable_seqscan = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan
as $$
declare
  now_ timestamptz;
begin
  perform pg_current_xact_id();
  now_ := clock_timestamp();
  insert into outcome (n, no, kind, at, provider, code, reply, reference)
  select * from (select u.n, u.no, u.kind, now_, u.provider, u.code, u.reply, u.ref
    from unnest(ns, nos, kinds, providers, codes, replies, refs) as u(n, no, kind, provider, code, reply, ref)) u
  order by u.n
  on conflict do nothing;

  -- A late outcome resolves a doubt, unless it is none itself.
  if exists (select from doubt) then
    delete from doubt d using unnest(ns, nos, kinds) as u(n, no, kind)
    where d.n = u.n and d.no = u.no and u.kind <> 4;
  end if;
  if plain then
    return;
  end if;

  insert into decision (n, no, kind, by, reason, at)
  select u.n, u.no, 'resend', u.policy, 'the provider''s answer was lost', now_
  from unnest(ns, nos, kinds, policies) as u(n, no, kind, policy)
  where u.kind = 4 and u.policy <> ''
  on conflict do nothing;

  insert into doubt (n, no, cause, since)
  select u.n, u.no, 'unknown', now_
  from unnest(ns, nos, kinds) as u(n, no, kind)
  where u.kind = 4 and not exists (select from decision d where d.n = u.n and d.no = u.no)
  on conflict (n, no) do update set cause = 'unknown';

  -- What was decided, or went on, needs no leave from here. A row in its place
  -- can only be a used leave that a race has left.
  insert into waiting (n, no, lane, due)
  select u.n, u.no + 1, u.n >> 57,
    case when exists (select from superseded s where s.n = u.n & ~63::bigint) then now_ else now_ + make_interval(secs => u.wait) end
  from unnest(ns, nos, kinds, waits, policies) as u(n, no, kind, wait, policy)
  where (u.kind in (2, 5) and not exists (select from decision d where d.n = u.n and d.no = u.no)
      or u.kind = 4 and exists (select from decision d where d.n = u.n and d.no = u.no and d.kind = 'resend' and d.by = u.policy))
    and not exists (select from attempt t where t.n = u.n and t.no = u.no + 1)
  order by u.n
  on conflict (n) do update set no = excluded.no, due = excluded.due where waiting.no < excluded.no;
end $$;
-- +goose StatementEnd

-- +goose Down
-- The functions of 0002 are not brought back: this only clears the way for its own Down.
drop table superseded, newest;
drop function supersede, accept_rows, end_message;
