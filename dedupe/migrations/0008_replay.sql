-- Replay: leave for another attempt to messages that ended as failed, or are held.

-- +goose Up

-- A replay is a plan over a range of positions, and its checkpoint. null doesn't
-- narrow. It is worked on by the process that has its lease, window by window:
-- each window's leaves and the checkpoint behind it are one transaction.
create table replay (
  id       bigint generated always as identity primary key,
  n        bigint,          -- the one message that was named; else what the filter finds
  id_named bytea,           -- the first 24 bytes of its id
  lane     smallint references lane,
  state    text check (state in ('failed', 'held')),
  provider text,            -- that answered last
  tenant   int references tenant,
  stream   text,
  since    timestamptz,     -- of acceptance
  until    timestamptz,
  tag      text,            -- as it stands in canonical content, with its quotes
  top      bigint not null, -- the last submission number when it was asked for
  rate     int not null check (rate between 1 and 10000), -- leaves a second
  reason   text not null,
  asked_by text not null,
  at       timestamptz not null default clock_timestamp(),

  status   text not null default 'active' check (status in ('active', 'paused', 'canceled', 'done')),
  stopped_by text,          -- who paused or canceled it last
  ended_at timestamptz,
  counted  boolean not null default false, -- the first pass, which only counts, is through
  pos      bigint not null, -- all of its lane up to here was looked at, in this pass
  total    bigint not null default 0,      -- to be sent, by the first pass
  given    bigint not null default 0,      -- leaves given
  left_out jsonb not null default '{}',    -- others, by cause, in this pass

  worker   int,             -- the process that has the lease
  leased_until timestamptz not null default '-infinity',
  moved_at timestamptz not null default clock_timestamp(), -- of the checkpoint
  pace_since timestamptz,   -- since when leaves were given without a pause
  pace_from  bigint not null default 0     -- and how many there were before
) with (fillfactor = 70);
create index replay_open on replay (id) where status in ('active', 'paused');

-- has_tag says whether canonical content has a tag, given with its quotes. It
-- compares the text as it stands: json, unlike jsonb, takes any of it.
-- +goose StatementBegin
create function has_tag(body bytea, tag text) returns boolean language sql stable as $$
  select exists (
    select from (select convert_from(body, 'UTF8')::json as j) x,
      json_array_elements(coalesce(x.j -> 'email' -> 'tags', x.j -> 'push' -> 'tags', '[]')) e
    where e::text = tag)
$$;
-- +goose StatementEnd

-- replay_judge says of each message with lo < n <= hi that fits a replay's filter
-- why it is not to be sent, or null: then leave may be given for the attempt after
-- no. What it judges a message to be sent by can't change any more but by such a
-- leave: each attempt has an outcome that says "not taken", the last one's is
-- "rejected" or it is a hold. Whether it has expired or is superseded is judged
-- again by its claim.
--
-- Who names a message (n is set) may send what was sent, or may have been.
-- +goose StatementBegin
create function replay_judge(r replay, lo bigint, hi bigint) returns table (n bigint, no smallint, kind smallint, cause text)
language plpgsql stable
set enable_seqscan = off set enable_nestloop = off set plan_cache_mode = force_generic_plan
as $$
begin
  return query
  with fits as materialized (
    select m.n, m.expires_at from message m
    where m.n > lo and m.n <= hi
      and (r.tenant is null or m.tenant = r.tenant)
      and (r.stream is null or m.stream in (select s.id from stream s where s.name = r.stream and (r.tenant is null or s.tenant = r.tenant)))
      and (r.since is null or m.accepted_at >= r.since)
      and (r.until is null or m.accepted_at < r.until)
      and (r.tag is null or has_tag((select c.body from content c where c.n = m.n & ~63::bigint), r.tag))
  ), story as (
    select a.n, max(a.no) as no,
      (array_agg(a.kind order by a.no desc))[1] as kind,
      (array_agg(a.note order by a.no desc))[1] as note,
      (array_agg(o.kind order by a.no desc))[1] as outcome,
      (array_agg(d.kind order by a.no desc))[1] as decided,
      (array_agg(o.provider order by a.no desc) filter (where o.provider is not null))[1] as provider,
      max(greatest(a.at, o.at, d.at)) as ended,
      coalesce(bool_or(o.kind = 1 or d.kind = 'sent'), false) as sent,
      bool_or(a.kind = 1 and (o.kind is null or o.kind = 4)) as unsure
    from attempt a
    left join outcome o on o.n = a.n and o.no = a.no and o.n > lo and o.n <= hi
    left join decision d on d.n = a.n and d.no = a.no and d.n > lo and d.n <= hi
    where a.n > lo and a.n <= hi
    group by a.n
  )
  select f.n, s.no, s.kind, case
    when s.n is null then case when w.n is null then 'queued' else 'waiting' end
    when s.kind = 2 then 'canceled'
    when s.kind = 3 then 'expired'
    when s.kind = 4 then 'superseded'
    when s.kind = 5 and s.outcome = 5 or s.decided = 'resend' or s.decided is null and s.outcome in (2, 5) then 'waiting'
    when s.decided is null and (s.outcome = 4 or t.n is not null) then 'in_doubt'
    when s.decided is null and s.outcome is null and s.kind = 1 then 'sending'
    when r.n is null and s.sent then 'sent'
    when r.n is null and s.unsure then 'maybe_sent'
    when r.n is null and s.kind = 5 and s.note = 'key_conflict' then 'key_conflict'
    when r.state <> case s.kind when 5 then 'held' else 'failed' end then case s.kind when 5 then 'held' else 'failed' end
    when f.expires_at <= clock_timestamp() then 'expired'
    when exists (select from superseded x where x.n = f.n & ~63::bigint) then 'superseded'
    when not exists (select from content c where c.n = f.n & ~63::bigint) then 'erased'
    when r.n is null and s.ended >= r.at then 'later'
  end
  from fits f
  left join story s on s.n = f.n
  left join doubt t on t.n = s.n and t.no = s.no and t.n > lo and t.n <= hi
  left join waiting w on w.n = f.n and w.n > lo and w.n <= hi
  where r.provider is null or s.provider = r.provider;
end $$;
-- +goose StatementEnd

-- replay_look is what replay_judge says of a window: how many there are of each
-- cause, '' for those to be sent, and the first of them.
-- +goose StatementBegin
create function replay_look(r replay, lo bigint, hi bigint, most int) returns table (cause text, count bigint, sample bigint[])
language sql stable as $$
  select coalesce(j.cause, ''), count(*), (array_agg(j.n order by j.n))[1:most] from replay_judge(r, lo, hi) j group by 1
$$;
-- +goose StatementEnd

-- replay_leave gives leave for the attempt after each (n, no), and says to which.
-- The leave after a hold is its outcome, that after any other attempt a decision:
-- it may take the place of one that ended the message, which its reason keeps. The
-- keys of both tables let one of those win that do this at once.
-- +goose StatementBegin
create function replay_leave(ns bigint[], nos smallint[], kinds smallint[], by_ text, why text) returns bigint[]
language plpgsql
set enable_seqscan = off
as $$
declare
  now_ timestamptz;
  got  bigint[];
begin
  perform pg_current_xact_id();
  now_ := clock_timestamp();
  with u as (
    select * from unnest(ns, nos, kinds) as u(n, no, kind) order by u.n
  ), decided as (
    insert into decision as d (n, no, kind, by, reason, at)
    select u.n, u.no, 'resend', by_, why, now_ from u where u.kind <> 5
    on conflict (n, no) do update set kind = 'resend', by = excluded.by, at = excluded.at,
      reason = left(excluded.reason || ' (before: ' || d.kind || ' by ' || d.by || ', ' || d.reason || ')', 2000)
    where d.kind <> 'resend'
    returning d.n, d.no
  ), released as (
    insert into outcome (n, no, kind, at, code, reply)
    select u.n, u.no, 5, now_, 'released', left(by_ || ': ' || why, 2000) from u where u.kind = 5
    on conflict (n, no) do nothing
    returning outcome.n, outcome.no
  ), leave as (
    insert into waiting (n, no, lane, due)
    select x.n, x.no + 1, x.n >> 57, now_ from (select * from decided union all select * from released) x order by x.n
    on conflict (n) do update set no = excluded.no, due = excluded.due, held = null where waiting.no < excluded.no
  )
  select array_agg(x.n) into got from (select decided.n from decided union all select released.n from released) x;
  return coalesce(got, '{}');
end $$;
-- +goose StatementEnd

-- replay_step looks at lo < n <= hi for the process that has the lease, and moves
-- the checkpoint on: to hi, or in the second pass to the last of the most messages
-- that got leave. It does nothing, and says so by no row, unless the checkpoint is
-- lo: so a step whose commit is unknown can be made again. full: more than ahead
-- attempts of the lane are due already, and no leave was given.
-- +goose StatementBegin
create function replay_step(id_ bigint, worker_ int, lo bigint, hi bigint, most int, ahead int)
returns table (edge bigint, gave bigint, full_ boolean)
language plpgsql as $$
declare
  lease constant interval := '10 s';
  r     replay;
  ns    bigint[];
  nos   smallint[];
  kinds smallint[];
  out_  jsonb;
  due_  int;
begin
  perform pg_current_xact_id();
  select * into r from replay x where x.id = id_ and x.status = 'active' and x.worker = worker_ and x.pos = lo for update;
  if not found then
    return;
  end if;
  if r.counted then
    select count(*) into due_ from (
      select from waiting w where w.lane = lo >> 57 and w.due <= clock_timestamp() limit ahead + 1) x;
    if due_ > ahead then
      update replay x set leased_until = clock_timestamp() + lease where x.id = id_;
      return query select lo, 0::bigint, true;
      return;
    end if;
  end if;
  with j as materialized (
    select * from replay_judge(r, lo, hi)
  ), picked as materialized (
    select * from j where j.cause is null order by j.n limit case when r.counted then most end
  ), e as (
    select case when r.counted and count(*) = most then max(picked.n) else hi end as at from picked
  )
  select e.at, (select array_agg(p.n order by p.n) from picked p), (select array_agg(p.no order by p.n) from picked p),
    (select array_agg(p.kind order by p.n) from picked p),
    (select jsonb_object_agg(y.cause, y.count) from (
      select j.cause, count(*) as count from j where j.cause is not null and j.n <= e.at group by j.cause) y)
  into edge, ns, nos, kinds, out_ from e;
  gave := coalesce(cardinality(ns), 0);
  if r.counted and gave > 0 then
    gave := cardinality(replay_leave(ns, nos, kinds, r.asked_by, format('replay %s: %s', id_, r.reason)));
    if gave < cardinality(ns) then -- somebody else was first
      out_ := coalesce(out_, '{}') || jsonb_build_object('waiting', coalesce((out_ ->> 'waiting')::bigint, 0) + cardinality(ns) - gave);
    end if;
  end if;
  update replay x set pos = edge, moved_at = clock_timestamp(), leased_until = clock_timestamp() + lease,
    total = x.total + case when r.counted then 0 else gave end,
    given = x.given + case when r.counted then gave else 0 end,
    left_out = x.left_out || coalesce((
      select jsonb_object_agg(o.key, o.value::bigint + coalesce((x.left_out ->> o.key)::bigint, 0)) from jsonb_each_text(out_) o), '{}')
  where x.id = id_;
  full_ := false;
  return next;
end $$;
-- +goose StatementEnd

-- replay_named gives leave to one message, by its name, if no is its last
-- attempt; or says why it doesn't.
-- +goose StatementBegin
create function replay_named(n_ bigint, no_ smallint, by_ text, why text) returns table (id bigint, cause text)
language plpgsql as $$
declare
  r replay;
  j record;
begin
  perform pg_current_xact_id();
  r.n := n_;
  r.at := clock_timestamp();
  select * into j from replay_judge(r, n_ - 1, n_);
  if not found then
    return query select 0::bigint, 'gone'::text;
  elsif j.cause is not null then
    return query select 0::bigint, j.cause;
  elsif j.no <> no_ then
    return query select 0::bigint, 'changed'::text;
  else
    insert into replay (n, id_named, top, rate, reason, asked_by, status, ended_at, counted, pos, total, given)
    values (n_, (select m.id from message m where m.n = n_), 0, 1, why, by_, 'done', clock_timestamp(), true, n_, 1, 1) returning replay.id into r.id;
    if cardinality(replay_leave(array[n_], array[no_], array[j.kind], by_, format('replay %s: %s', r.id, why))) = 0 then
      delete from replay x where x.id = r.id;
      return query select 0::bigint, 'waiting'::text;
      return;
    end if;
    return query select r.id, null::text;
  end if;
end $$;
-- +goose StatementEnd

-- +goose Down
drop function replay_named, replay_step, replay_leave, replay_look, replay_judge, has_tag;
drop table replay;
