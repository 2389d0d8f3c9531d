-- A ledger that was rolled back (rollback.go): restored from a backup, or a
-- replica promoted that lagged. Whoever sees it notes it here; from then on
-- nothing is accepted, claimed or recorded, by any process of any release,
-- until it is reconciled (reconcile.go).

-- +goose Up

-- The branches of this database's history. A reconciliation begins a new one.
create table lineage (
  no     bigint generated always as identity primary key,
  branch uuid not null unique default gen_random_uuid(),
  at     timestamptz not null default clock_timestamp()
);
insert into lineage default values;

create table rollback (
  id        bigint generated always as identity primary key,
  at        timestamptz not null default clock_timestamp(),
  cause     text not null,
  back_to   timestamptz not null, -- up to when the ledger's history is known
  by        text,                 -- who reconciled it
  closed_at timestamptz
);
create unique index rollback_open on rollback ((true)) where closed_at is null;

-- +goose StatementBegin
create function ledger_stands() returns void language plpgsql as $$
begin
  if exists (select from rollback r where r.closed_at is null)
  and coalesce(current_setting('stormpost.reconciling', true), '') <> 'on' then
    raise exception 'the ledger was rolled back, and is not reconciled' using errcode = 'SP004', hint = 'run stormpost reconcile';
  end if;
end $$;
-- +goose StatementEnd

-- +goose StatementBegin
do $$
declare
  f record;
begin
  for f in
    select p.oid, x.before from (values
      ('accept_rows', 'perform pg_current_xact_id();'), ('claim_batch', 'perform pg_current_xact_id();'),
      ('record_batch', 'perform pg_current_xact_id();'), ('hold_message', 'perform pg_current_xact_id();'),
      ('cancel_message', 'perform pg_current_xact_id();'), ('decide_doubt', 'perform pg_current_xact_id();'),
      ('release_message', 'perform pg_current_xact_id();'), ('sweep_doubts', 'perform from sweep for update skip locked;'),
      ('let_go', 'select id into h from hold'), ('unclaimed', 'select l.cursor into was from lane l'),
      ('drop_era', 'foreach l in array lanes loop')) x(name, before)
    join pg_proc p on p.proname = x.name and pg_function_is_visible(p.oid)
  loop
    -- Once, where its work begins.
    execute regexp_replace(pg_get_functiondef(f.oid), regexp_replace(f.before, '([().])', '\\\1', 'g'), 'perform ledger_stands(); ' || f.before);
  end loop;
end $$;
-- +goose StatementEnd

-- reenter_batch puts submissions back that the ledger lost, each under its own
-- key, at the position and with the numbers that it had, if those are free. It
-- returns them all with where they are: those that were known as well, fresh
-- false. accepteds is when they were accepted.
-- +goose StatementBegin
create function reenter_batch(
  keys uuid[], prints bytea[], submissions bigint[], lanes smallint[], tenants int[], streams bigint[], firsts bigint[], counts smallint[],
  bodies bytea[], traces text[], tests boolean[], accepteds timestamptz[], expiries timestamptz[], send_ats timestamptz[],
  owners int[], indexes smallint[], recipients text[], supersedes bytea[])
returns table (ord int, submission bigint, fresh boolean)
language plpgsql
set enable_seqscan = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan
as $$
declare
  ns    bigint[];
  under bytea[];
  n_    bigint;
  first bigint;
begin
  perform pg_current_xact_id();
  perform from counter c where c.stream = any (streams) order by c.stream for update;
  for i in 1..cardinality(keys) loop
    ord := i;
    fresh := false;
    select d.submission into submission from identity d where d.key = keys[i];
    if not found then
      fresh := true;
      submission := submissions[i];
      n_ := (lanes[i]::bigint << 57) | (submission << 6);
      if exists (select from message m where m.n >= n_ and m.n <= n_ | 63) or exists (select from content c where c.n = n_) then
        submission := nextval('position');
        n_ := (lanes[i]::bigint << 57) | (submission << 6);
      end if;
      first := firsts[i];
      if first <= 0 or exists (select from message m where m.stream = streams[i] and m.seq >= first and m.seq < first + counts[i]) then
        select c.last + 1 into first from counter c where c.stream = streams[i];
      end if;
      update counter c set last = greatest(c.last, first + counts[i] - 1) where c.stream = streams[i];
      insert into identity (key, submission, lane, count, print) values (keys[i], submission, lanes[i], counts[i], prints[i]);
      insert into content (n, body) values (n_, bodies[i]);
      insert into message (n, stream, seq, tenant, test, id, recipient, accepted_at, expires_at, trace, entered_at)
      select n_ | r.index, streams[i], first + r.index, tenants[i], tests[i], uuid_send(keys[i]) || substr(prints[i], 1, 8), r.recipient,
        least(accepteds[i], clock_timestamp()), expiries[i], traces[i], clock_timestamp()
      from unnest(owners, indexes, recipients) r(owner, index, recipient) where r.owner = i;
      if send_ats[i] is not null then
        insert into waiting (n, no, lane, due) select n_ | r.index, 1, lanes[i], send_ats[i]
        from unnest(owners, indexes) r(owner, index) where r.owner = i and send_ats[i] > clock_timestamp()
        on conflict (n) do nothing; -- an outcome that came late has left one
      end if;
      update lane l set cursor = least(l.cursor, n_ - 1) where l.code = lanes[i] and l.cursor >= n_;
      if supersedes[i] is not null then
        ns := ns || n_;
        under := under || supersedes[i];
      end if;
    end if;
    return next;
  end loop;
  if ns is not null then
    perform supersede(ns, under);
  end if;
end $$;
-- +goose StatementEnd

-- retrace_batch makes attempts and outcomes of what is known to have happened,
-- as far as the ledger doesn't know it. kinds are 1 to 5, an outcome; 0, an attempt
-- that nobody knows the end of, which becomes a doubt; 6, canceled. Earlier
-- attempts that are missing count as deferred: they must have been. It says how many it changed.
-- +goose StatementBegin
create function retrace_batch(ns bigint[], nos smallint[], kinds smallint[], ids bytea[], ats timestamptz[], providers text[], codes text[])
returns int
language plpgsql
set enable_seqscan = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan
as $$
declare
  r       record;
  made    int;
  told    int;
  changed int := 0;
begin
  perform pg_current_xact_id();
  for r in select * from unnest(ns, nos, kinds, ids, ats, providers, codes) u(n, no, kind, id, at, provider, code) order by n, no loop
    continue when not exists (select from message m where m.n = r.n and m.id = r.id);
    for k in 1..r.no - 1 loop
      insert into attempt (n, no, kind, worker, token, at, note) values (r.n, k, 1, 0, 0, r.at, 'reconciled') on conflict (n, no) do nothing;
      insert into outcome (n, no, kind, at, code)
      select r.n, k, 2, r.at, 'reconciled'
      where not exists (select from decision d where d.n = r.n and d.no = k and d.kind = 'resend')
      on conflict (n, no) do nothing;
      delete from doubt d where d.n = r.n and d.no = k;
    end loop;
    insert into attempt (n, no, kind, worker, token, at, note)
    values (r.n, r.no, case when r.kind = 6 then 2 else 1 end, 0, 0, r.at, 'reconciled') on conflict (n, no) do nothing;
    get diagnostics made = row_count;
    told := 0;
    delete from waiting w where w.n = r.n and w.no <= r.no;
    if r.kind between 1 and 5 then
      insert into outcome (n, no, kind, at, provider, code) values (r.n, r.no, r.kind, r.at, r.provider, r.code) on conflict (n, no) do nothing;
      get diagnostics told = row_count;
    end if;
    if exists (select from outcome o where o.n = r.n and o.no = r.no and o.kind <> 4) then
      delete from doubt d where d.n = r.n and d.no = r.no;
    elsif r.kind in (0, 4) and exists (select from attempt a where a.n = r.n and a.no = r.no and a.kind = 1)
      and not exists (select from decision d where d.n = r.n and d.no = r.no) then
      insert into doubt (n, no, cause) values (r.n, r.no, case r.kind when 4 then 'unknown' else 'silent' end) on conflict (n, no) do nothing;
      get diagnostics told = row_count;
    end if;
    if r.kind in (2, 5) and not exists (select from decision d where d.n = r.n and d.no = r.no)
       and not exists (select from attempt a where a.n = r.n and a.no = r.no + 1) then
      insert into waiting (n, no, lane, due) values (r.n, r.no + 1, r.n >> 57, clock_timestamp())
      on conflict (n) do update set no = excluded.no, due = excluded.due where waiting.no < excluded.no;
    end if;
    changed := changed + greatest(made, told);
  end loop;
  return changed;
end $$;
-- +goose StatementEnd

-- +goose Down
-- The functions that ask it go on working: it has nothing to refuse any more.
drop function reenter_batch, retrace_batch;
create or replace function ledger_stands() returns void language sql as '';
drop table rollback, lineage;
