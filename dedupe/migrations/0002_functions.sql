-- The operations of the hot path. Each takes one batch as arrays, and assigns
-- its transaction id before it reads a clock or a sequence, so that a horizon
-- (horizon.go) can tell when all that was numbered before it has been decided.
-- Plans are generic and go by index: they are made when the tables are empty.

-- +goose Up

-- accept_batch keeps submissions and numbers their messages. The arrays of
-- submissions run in parallel; recipients are all submissions' in order, owner
-- and index say whose and which. It returns the fresh ones: those whose key is
-- known are not returned. Keys are distinct within a batch.
-- +goose StatementBegin
create function accept_batch(
  keys uuid[], prints bytea[], lanes smallint[], tenants int[], streams bigint[], counts smallint[],
  bodies bytea[], traces text[], tests boolean[], expiries timestamptz[], send_ats timestamptz[],
  owners int[], indexes smallint[], recipients text[])
returns table (ord int, submission bigint, first bigint, waits boolean)
language plpgsql
set enable_seqscan = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan
as $$
declare
  now_ timestamptz;
  lost bigint;
begin
  perform pg_current_xact_id();
  now_ := clock_timestamp();
  -- Locks in one order: counters by stream, then identities by key.
  perform from counter c where c.stream = any (streams) order by c.stream for update;
  select s into lost from unnest(streams) s where not exists (select from counter c where c.stream = s) limit 1;
  if lost is not null then
    raise exception 'stream % has lost its counter', lost using errcode = 'SP001';
  end if;
  return query
  with sub as (
    select * from unnest(keys, prints, lanes, tenants, streams, counts, traces, tests, expiries, send_ats)
      with ordinality as u(key, print, lane, tenant, stream, count, trace, test, expires_at, send_at, ord)
  ), fresh as (
    insert into identity as i (key, submission, lane, count, print)
    select u.key, nextval('position'), u.lane, u.count, u.print from sub u order by u.key
    on conflict do nothing
    returning i.key, i.submission
  ), num as materialized (
    select u.ord::int, f.submission, (u.lane::bigint << 57) | (f.submission << 6) as n, u.stream, u.count, u.tenant, u.test,
           u.trace, u.expires_at, u.send_at, u.lane,
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
    select num.n | r.index, num.stream, num.first + r.index, num.tenant, num.test, num.id, r.recipient, now_, num.expires_at, num.trace
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

-- claim_batch makes attempts, for those that may be made. The leave to make
-- attempt no is: no waiting row for a first attempt, else a waiting row of that
-- very number that is due (or whose message has expired). A message past its
-- life gets its end instead. Verdicts are message.ClaimVerdict; asking again
-- with the same token gives the same answer.
-- +goose StatementBegin
create function claim_batch(ns bigint[], nos smallint[], ids bytea[], tokens bigint[], worker_ int)
returns table (ord int, verdict smallint, tenant int, test boolean, recipient text, expires_at timestamptz, life float8)
language plpgsql
set enable_seqscan = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan
as $$
declare
  now_  timestamptz;
  freed bigint[];
  used  smallint[];
  made  int;
begin
  perform pg_current_xact_id();
  if exists (select from process p where p.id = worker_ and p.given_up_at is not null) then
    raise exception 'process % was given up: it must beat before it claims', worker_ using errcode = 'SP003';
  end if;
  now_ := clock_timestamp();
  -- offset 0 keeps each look-up an index probe, whatever the planner believes.
  return query
  with may as materialized (
    select a.n, a.no, a.token, a.ord::int, m.tenant, m.test, m.recipient, m.expires_at
    from unnest(ns, nos, ids, tokens) with ordinality as a(n, no, id, token, ord)
    cross join lateral (select * from message m where m.n = a.n and m.id = a.id offset 0) m
    left join lateral (select w.no, w.due from waiting w where w.n = a.n offset 0) w on true
    where case when w.no is null then a.no = 1 else w.no = a.no and (w.due <= now_ or m.expires_at <= now_) end
  ), ins as (
    insert into attempt as t (n, no, kind, worker, token, at)
    select may.n, may.no, case when may.expires_at <= now_ then 3 else 1 end, worker_, may.token, now_ from may order by may.n
    on conflict do nothing
    returning t.n, t.token, t.kind
  )
  select may.ord, (case ins.kind when 3 then 4 else 1 end)::smallint, may.tenant, may.test, may.recipient, may.expires_at,
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
-- attempt after deferred and returned; policy names who has an unknown resent.
-- plain promises that all are sent.
-- +goose StatementBegin
create function record_batch(
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
  select u.n, u.no + 1, u.n >> 57, now_ + make_interval(secs => u.wait)
  from unnest(ns, nos, kinds, waits, policies) as u(n, no, kind, wait, policy)
  where (u.kind in (2, 5) and not exists (select from decision d where d.n = u.n and d.no = u.no)
      or u.kind = 4 and exists (select from decision d where d.n = u.n and d.no = u.no and d.kind = 'resend' and d.by = u.policy))
    and not exists (select from attempt t where t.n = u.n and t.no = u.no + 1)
  order by u.n
  on conflict (n) do update set no = excluded.no, due = excluded.due where waiting.no < excluded.no;
end $$;
-- +goose StatementEnd

-- hold_message records that an attempt was not handed over, and sets its
-- message aside.
-- +goose StatementBegin
create function hold_message(n_ bigint, no_ smallint, worker_ int, reason text) returns void language plpgsql as $$
begin
  perform pg_current_xact_id();
  insert into outcome (n, no, kind, at, code, reply) values (n_, no_, 5, clock_timestamp(), 'held', reason) on conflict do nothing;
  if exists (select from decision d where d.n = n_ and d.no = no_) then
    return;
  end if;
  insert into attempt (n, no, kind, worker, token, at, note)
  values (n_, no_ + 1, 5, worker_, 0, clock_timestamp(), reason) on conflict do nothing;
  delete from doubt where n = n_ and no = no_;
end $$;
-- +goose StatementEnd

-- cancel_message ends a message that certainly was not handed over, and says
-- whether it is canceled now. A lost race is decided by the attempt's key.
-- +goose StatementBegin
create function cancel_message(n_ bigint, worker_ int) returns boolean language plpgsql as $$
declare
  last attempt;
  made int;
begin
  perform pg_current_xact_id();
  for i in 1..5 loop
    select * into last from attempt a where a.n = n_ order by a.no desc limit 1;
    if last.kind = 2 then
      return true;
    end if;
    if last.kind = 5 then
      insert into outcome (n, no, kind, at, code) values (n_, last.no, 5, clock_timestamp(), 'released') on conflict do nothing;
    elsif last.n is not null and not coalesce(
      (select d.kind = 'resend' from decision d where d.n = n_ and d.no = last.no),
      exists (select from outcome o where o.n = n_ and o.no = last.no and o.kind in (2, 5))) then
      return false;
    end if;
    insert into attempt (n, no, kind, worker, token, at)
    values (n_, coalesce(last.no, 0) + 1, 2, worker_, 0, clock_timestamp())
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

-- pulse_now notes that the ledger can be written to, and the hole before it.
-- +goose StatementBegin
create function pulse_now(most interval) returns void language plpgsql as $$
declare
  was timestamptz;
begin
  select at into was from pulse for update;
  if clock_timestamp() - was > most then
    insert into outage (since, until) values (was, clock_timestamp()) on conflict do nothing;
    delete from outage where until < clock_timestamp() - interval '7 days';
  end if;
  update pulse set at = clock_timestamp();
end $$;
-- +goose StatementEnd

-- sweep_doubts makes doubts of attempts whose process is gone: its heartbeat is
-- older than beat. What it may have open is what that heartbeat listed, and what
-- it claimed since; a list may be some seconds older than its time (slack).
--
-- A claim may commit long after it was made, by a process that was only stopped.
-- So a process is first given up, from which on claim_batch refuses it until it
-- beats again; and looked at until every transaction has ended that may not have
-- seen that (barrier). Then nothing of it can come any more.
--
-- An attempt is in doubt when no living process lists it, and the time in which
-- the ledger could be written to since its claim exceeds its process's give_up.
-- Those of the lanes in resend are decided at once, by policy. It says how many
-- doubts there are new.
-- +goose StatementBegin
create function sweep_doubts(beat interval, slack interval, resend smallint[], policies text[]) returns int
language plpgsql
set enable_seqscan = off set enable_mergejoin = off set enable_hashjoin = off
as $$
declare
  gone  process;
  quiet boolean;
  fresh int;
begin
  perform from sweep for update skip locked;
  if not found then
    return 0;
  end if;
  perform pulse_now(beat);
  for gone in select * from process where beat_at <= clock_timestamp() - beat and not swept order by beat_at limit 100 loop
    quiet := coalesce(pg_snapshot_xmin(pg_current_snapshot()) >= gone.barrier, false);
    insert into silent (n, no, worker, at)
    select a.n, a.no, a.worker, a.at from attempt a
    where a.at >= gone.beat_at - slack and a.worker = gone.id and a.kind = 1
      and not exists (select from outcome o where o.n = a.n and o.no = a.no)
    union
    select a.n, a.no, a.worker, a.at from unnest(gone.open_n, gone.open_no) as l(n, no) join attempt a on a.n = l.n and a.no = l.no
    where a.worker = gone.id and a.kind = 1
      and not exists (select from outcome o where o.n = a.n and o.no = a.no)
    on conflict do nothing;
    update process set
      barrier = case when gone.given_up_at is not null then coalesce(gone.barrier, pg_snapshot_xmax(pg_current_snapshot())) end,
      given_up_at = coalesce(gone.given_up_at, clock_timestamp()),
      swept = quiet
    where id = gone.id and beat_at = gone.beat_at;
  end loop;
  if not exists (select from silent) and not exists (select from doubt) then
    return 0;
  end if;
  delete from silent s
  where exists (select from outcome o where o.n = s.n and o.no = s.no)
     or exists (select from decision d where d.n = s.n and d.no = s.no);
  with lost as (
    select s.n, s.no from silent s join process p on p.id = s.worker
    where not (p.beat_at > clock_timestamp() - beat
               and exists (select from unnest(p.open_n, p.open_no) as o(n, no) where o.n = s.n and o.no = s.no))
      and clock_timestamp() - s.at
        - coalesce((select sum(least(g.until, clock_timestamp()) - greatest(g.since, s.at)) from outage g where g.until > s.at), '0')
        > p.give_up
  ), done as (
    delete from silent s using lost where s.n = lost.n and s.no = lost.no
  ), decided as (
    insert into decision (n, no, kind, by, reason)
    select lost.n, lost.no, 'resend', r.policy, 'its worker is gone'
    from lost join unnest(resend, policies) as r(lane, policy) on r.lane = lost.n >> 57
    on conflict do nothing returning decision.n, decision.no
  ), leave as (
    insert into waiting (n, no, lane, due) select d.n, d.no + 1, d.n >> 57, clock_timestamp() from decided d
    on conflict (n) do update set no = excluded.no, due = excluded.due where waiting.no < excluded.no
  ), made as (
    insert into doubt (n, no, cause) select lost.n, lost.no, 'silent' from lost
    where lost.n >> 57 <> all (resend)
    on conflict do nothing returning 1
  )
  select count(*) into fresh from made;
  delete from doubt d
  where exists (select from outcome o where o.n = d.n and o.no = d.no and o.kind <> 4)
     or exists (select from decision e where e.n = d.n and e.no = d.no);
  return fresh;
end $$;
-- +goose StatementEnd

-- decide_doubt settles a doubt, once. It says whether it was one to settle.
-- +goose StatementBegin
create function decide_doubt(n_ bigint, kind_ text, by_ text, reason_ text) returns boolean language plpgsql as $$
declare
  d doubt;
begin
  perform pg_current_xact_id();
  select * into d from doubt x where x.n = n_ order by x.no desc limit 1 for update;
  if not found or exists (select from outcome o where o.n = n_ and o.no = d.no and o.kind <> 4) then
    return false;
  end if;
  insert into decision (n, no, kind, by, reason) values (n_, d.no, kind_, by_, reason_) on conflict do nothing;
  if not found then
    return false;
  end if;
  delete from doubt x where x.n = n_ and x.no = d.no;
  if kind_ = 'resend' then
    insert into waiting (n, no, lane, due) values (n_, d.no + 1, n_ >> 57, clock_timestamp())
    on conflict (n) do update set no = excluded.no, due = excluded.due where waiting.no < excluded.no;
  end if;
  return true;
end $$;
-- +goose StatementEnd

-- unclaimed is the oldest messages of a lane above its cursor that have
-- neither an attempt nor a waiting row, at most most. It moves the cursor to
-- just below the first of them, or to where it has looked. It looks window by
-- window, and no longer than about half a second: so however far the cursor lies
-- behind, each call moves it on; messages and attempts are merged in order. Whoever else moves it is not waited for.
-- +goose StatementBegin
create function unclaimed(lane_ smallint, horizon bigint, most int)
returns table (n bigint, id bytea, accepted_at timestamptz, trace text)
language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_nestloop = off set plan_cache_mode = force_generic_plan
as $$
declare
  wide  constant bigint := 4096::bigint << 6;
  start constant timestamptz := clock_timestamp();
  was   bigint;
  at_   bigint;
  edge  bigint;
  to_   bigint;
  found_ int := 0;
begin
  select l.cursor into was from lane l where l.code = lane_;
  at_ := was;
  while at_ < horizon and found_ < most and clock_timestamp() - start < interval '500 ms' loop
    edge := least(horizon, at_ + wide);
    for n, id, accepted_at, trace in
      select m.n, m.id, m.accepted_at, m.trace from message m
      where m.n > at_ and m.n <= edge
        and not exists (select from attempt a where a.n = m.n and a.no = 1 and a.n > at_ and a.n <= edge)
        and not exists (select from waiting w where w.n = m.n and w.n > at_ and w.n <= edge)
      order by m.n limit most - found_
    loop
      to_ := coalesce(to_, n - 1);
      found_ := found_ + 1;
      return next;
    end loop;
    at_ := edge;
  end loop;
  to_ := coalesce(to_, at_);
  if to_ > was then
    perform from lane l where l.code = lane_ for update skip locked;
    if found then
      update lane l set cursor = to_ where l.code = lane_ and l.cursor < to_;
    end if;
  end if;
end $$;
-- +goose StatementEnd

-- lane_depths counts what is ready in each lane, up to most, and says since when.
-- +goose StatementBegin
create function lane_depths(most bigint) returns table (lane smallint, depth bigint, oldest timestamptz)
language plpgsql stable
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan
as $$
declare
  lo bigint;
begin
  for lane, lo in select l.code, l.cursor from lane l loop
    select count(*), min(x.accepted_at) into depth, oldest from (
      select m.accepted_at from message m
      where m.n > lo and m.n < (lane + 1)::bigint << 57
        and not exists (select from attempt a where a.n = m.n and a.no = 1)
        and not exists (select from waiting w where w.n = m.n)
      order by m.n limit most) x;
    return next;
  end loop;
end $$;
-- +goose StatementEnd

-- number_before is the greatest number of a stream whose submission is below
-- the given one, by bisection: within a stream, numbers and submissions ascend
-- together.
-- +goose StatementBegin
create function number_before(stream_ bigint, submission bigint) returns bigint language plpgsql stable as $$
declare
  lo  bigint;
  hi  bigint;
  mid bigint;
  at  bigint;
begin
  select c.floor, c.last into lo, hi from counter c where c.stream = stream_;
  while lo < hi loop
    mid := (lo + hi + 1) / 2;
    select (m.n >> 6) & 2251799813685247 into at from message m where m.stream = stream_ and m.seq = mid;
    if at is null or at >= submission then
      hi := mid - 1;
    else
      lo := mid;
    end if;
  end loop;
  return lo;
end $$;
-- +goose StatementEnd

-- +goose Down
drop function accept_batch, claim_batch, record_batch, hold_message, cancel_message, pulse_now, sweep_doubts, decide_doubt, unclaimed, lane_depths, number_before;
