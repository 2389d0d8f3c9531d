-- What operators do: audits of whole lanes, and holds.

-- +goose Up

-- audit_window counts the messages with lo < n <= hi by what became of each. It
-- judges by the rows alone: a message that has not ended, and that nothing will
-- take up any more (invariant 3), is lost.
-- +goose StatementBegin
create function audit_window(lo bigint, hi bigint, cursor_ bigint) returns table (state text, count bigint)
language plpgsql stable
set enable_seqscan = off set enable_nestloop = off set plan_cache_mode = force_generic_plan
as $$
begin
  return query
  select x.became, count(*) from (
    select case
      when a.kind is null then case when w.n is not null then 'waiting' when m.n > cursor_ then 'queued' else 'lost' end
      when a.kind = 2 then 'canceled'
      when a.kind = 3 then 'expired'
      when a.kind = 4 then 'superseded'
      when a.kind = 5 and o.kind is distinct from 5 then 'held'
      when d.kind = 'sent' then 'sent'
      when d.kind = 'drop' then 'failed'
      when d.kind is null and o.kind = 1 then 'sent'
      when d.kind is null and o.kind = 3 then 'failed'
      when d.kind is null and t.n is not null then 'in_doubt'
      -- Open: its process lives, or the sweep has yet to look at it or watches it.
      when d.kind is null and o.kind is null then case when p.id is null or s.n is not null then 'sending' else 'lost' end
      when w.no = a.no + 1 then 'waiting'
      else 'lost'
    end as became
    from message m
    left join (
      select distinct on (y.n) y.n, y.no, y.kind, y.worker from attempt y where y.n > lo and y.n <= hi order by y.n, y.no desc
    ) a on a.n = m.n
    left join outcome o on o.n = a.n and o.no = a.no and o.n > lo and o.n <= hi
    left join decision d on d.n = a.n and d.no = a.no and d.n > lo and d.n <= hi
    left join doubt t on t.n = a.n and t.no = a.no and t.n > lo and t.n <= hi
    left join silent s on s.n = a.n and s.no = a.no and s.n > lo and s.n <= hi
    left join process p on p.id = a.worker and p.swept
    left join waiting w on w.n = m.n and w.n > lo and w.n <= hi
    where m.n > lo and m.n <= hi) x
  group by x.became;
end $$;
-- +goose StatementEnd

-- What a person holds: no message of that lane, tenant or provider is claimed
-- until the hold is released. done: all that it set aside goes on.
create table hold (
  id          bigint generated always as identity primary key,
  lane        smallint references lane,
  tenant      int references tenant,
  provider    text,
  reason      text not null,
  by          text not null,
  at          timestamptz not null default clock_timestamp(),
  released_by text,
  released_at timestamptz,
  done        boolean not null default false,
  check (num_nonnulls(lane, tenant, provider) = 1)
);
create unique index hold_active on hold (coalesce(lane, 0), coalesce(tenant, 0), coalesce(provider, '')) where released_at is null;
create index hold_undone on hold (id) where not done;

-- Which hold set the attempt aside. It is due when its message expires, so that
-- it ends then, unless the release makes it due before.
alter table waiting add column held bigint;
create index waiting_held on waiting (held) where held is not null;

-- hold_back says which of those that are about to be claimed are held. Those of
-- a held lane or provider stay with the asker (verdict 7); those of a held
-- tenant, which shares its lane with others, are set aside (verdict 3). What has
-- expired, or was claimed already, is for claim_batch to tell. A release waits
-- for the transactions that may still set something aside.
-- +goose StatementBegin
create function hold_back(ns bigint[], nos smallint[], ids bytea[], providers text[]) returns table (ord int, verdict smallint)
language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
declare
  now_   timestamptz;
  active bigint[];
begin
  select array_agg(x.id) into active
  from (select h.id from hold h where not h.done and h.released_at is null order by h.id for share) x;
  if active is null then
    return;
  end if;
  now_ := clock_timestamp();
  return query
  with asked as materialized (
    select u.n, u.no, u.ord::int, m.expires_at, u.provider, m.tenant
    from unnest(ns, nos, ids, providers) with ordinality as u(n, no, id, provider, ord)
    cross join lateral (select x.tenant, x.expires_at from message x where x.n = u.n and x.id = u.id offset 0) m
    where m.expires_at > now_ and not exists (select from attempt t where t.n = u.n and t.no = u.no)
  ), kept as materialized (
    select a.ord from asked a
    where exists (select from hold h where h.id = any (active) and (h.lane = a.n >> 57 or h.provider = a.provider))
  ), aside as materialized (
    select a.*, h.id as hold from asked a join hold h on h.tenant = a.tenant and h.id = any (active)
    where not exists (select from kept k where k.ord = a.ord)
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

-- let_go makes due what released holds have set aside, most at a time, and says
-- how many those were.
-- +goose StatementBegin
create function let_go(most int) returns int
language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan
as $$
declare
  h    bigint;
  gone int;
begin
  select id into h from hold where not done and released_at is not null order by id limit 1 for update skip locked;
  if h is null then
    return 0;
  end if;
  with x as (select w.n from waiting w where w.held = h order by w.n limit most for update)
  update waiting w set due = clock_timestamp(), held = null from x where w.n = x.n;
  get diagnostics gone = row_count;
  if gone < most then
    update hold set done = true where id = h;
  end if;
  return greatest(gone, 1);
end $$;
-- +goose StatementEnd

-- release_message gives a message that was set aside the leave for its next
-- attempt, and says whether it was one.
-- +goose StatementBegin
create function release_message(n_ bigint, why text) returns boolean language plpgsql as $$
declare
  last attempt;
begin
  perform pg_current_xact_id();
  select * into last from attempt a where a.n = n_ order by a.no desc limit 1;
  if last.kind is distinct from 5 then
    return false;
  end if;
  -- Canceling releases, too: one of them is the first.
  insert into outcome (n, no, kind, at, code, reply) values (n_, last.no, 5, clock_timestamp(), 'released', why) on conflict do nothing;
  if not found then
    return false;
  end if;
  insert into waiting (n, no, lane, due) values (n_, last.no + 1, n_ >> 57, clock_timestamp())
  on conflict (n) do update set no = excluded.no, due = excluded.due, held = null where waiting.no < excluded.no;
  return true;
end $$;
-- +goose StatementEnd

-- +goose Down
drop function audit_window, hold_back, let_go, release_message;
alter table waiting drop column held;
drop table hold;
