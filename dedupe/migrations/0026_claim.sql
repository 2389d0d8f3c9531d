-- claim_batch costs the same with many eras as with few: it names the range that
-- its messages are in. And it weighs what is sent again after a lost answer.

-- +goose Up
-- +goose StatementBegin
create or replace function claim_batch(ns bigint[], nos smallint[], ids bytea[], tokens bigint[], worker_ int)
returns table (ord int, verdict smallint, tenant int, test boolean, recipient text, expires_at timestamptz, life float8)
language plpgsql
set enable_seqscan = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan
as $$
declare
  now_  timestamptz;
  keyed boolean;
  lo    bigint;
  hi    bigint;
  asked int;
  made  int;
  freed bigint[];
  used  smallint[];
begin
  perform ledger_stands();
  if exists (select from told) then
    perform recall_told(ns, ids);
  end if;
  perform pg_current_xact_id();
  if exists (select from process p where p.id = worker_ and p.given_up_at is not null) then
    raise exception 'process % was given up: it must beat before it claims', worker_ using errcode = 'SP003';
  end if;
  if exists (select from unnest(nos) as no where no > 1) then
    perform weigh_resends(ns, nos);
  end if;
  keyed := exists (select from superseded); -- else nobody pays for keys
  now_ := clock_timestamp();
  -- Lane by lane, and between the least and the greatest position of it: so only
  -- the partitions that these are in are opened, however many eras are kept.
  for lo, hi, asked in select min(a.n), max(a.n), count(*) from unnest(ns) as a(n) group by a.n >> 57 order by 1 loop
    -- offset 0 keeps each look-up an index probe, whatever the planner believes.
    return query
    with may as materialized (
      select a.n, a.no, a.token, a.ord::int, m.tenant, m.test, m.recipient, m.expires_at, s.by
      from unnest(ns, nos, ids, tokens) with ordinality as a(n, no, id, token, ord)
      cross join lateral (select * from message m where m.n = a.n and m.n between lo and hi and m.id = a.id offset 0) m
      left join lateral (select w.no, w.due from waiting w where w.n = a.n offset 0) w on true
      left join lateral (select s.by from superseded s where keyed and s.n = a.n & ~63::bigint offset 0) s on true
      where a.n between lo and hi
        and case when w.no is null then a.no = 1 else w.no = a.no and (w.due <= now_ or m.expires_at <= now_ or s.by is not null) end
    ), ins as (
      insert into attempt as t (n, no, kind, worker, token, at, note)
      select may.n, may.no, case when may.by is not null then 4 when may.expires_at <= now_ then 3 else 1 end, worker_, may.token, now_,
        encode(may.by, 'hex')
      from may order by may.n
      on conflict (n, no) do nothing
      returning t.n, t.token, t.kind
    )
    select may.ord, (case ins.kind when 3 then 4 when 4 then 2 else 1 end)::smallint, may.tenant, may.test, may.recipient, may.expires_at,
      extract(epoch from may.expires_at - now_)::float8
    from ins join may on may.n = ins.n and may.token = ins.token;
    get diagnostics made = row_count;

    -- The leave goes with the attempt that used it, and no later one.
    select array_agg(w.n), array_agg(w.no) into freed, used
    from unnest(ns, nos) as a(n, no) join waiting w on w.n = a.n and w.no = a.no
    where a.n between lo and hi;
    if freed is not null then
      select array_agg(f.n), array_agg(f.no) into freed, used
      from unnest(freed, used) as f(n, no)
      cross join lateral (select from attempt t where t.n = f.n and t.n between lo and hi and t.no = f.no offset 0) t;
      delete from waiting w using unnest(freed, used) as f(n, no) where w.n = f.n and w.no = f.no;
    end if;
    continue when made = asked;

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
    left join lateral (select * from message m where m.n = a.n and m.n between lo and hi and m.id = a.id offset 0) m on true
    left join lateral (select t.no, t.token, t.kind, t.at from attempt t where t.n = a.n and t.n between lo and hi and t.no = a.no offset 0) t on true
    left join lateral (select w.no from waiting w where w.n = a.n offset 0) w on true
    where a.n between lo and hi and (t.token is distinct from a.token or t.at <> now_);
  end loop;
end $$;
-- +goose StatementEnd

-- +goose Down
-- The function does the same for those that came before: it stays.
