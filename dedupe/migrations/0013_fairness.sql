-- Fairness: what the lane's tenants have to go is found tenant by tenant, so that
-- one's backlog doesn't hide another's message.

-- +goose Up

-- On the partitions from the oldest message on that may still go, and on all to
-- come. While it is built nothing is accepted into the ledger, and the journal
-- takes it: some seconds for an era that is full.
create index message_tenant on only message (tenant, n);
-- +goose StatementBegin
do $$
declare
  part text;
begin
  for part in
    select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
    join lane l on l.code = split_part(c.relname, '_', 2)::int
    where i.inhparent = 'message'::regclass
      and split_part(c.relname, '_', 3)::bigint >= (l.cursor & ((1::bigint << 57) - 1)) >> 29
    order by 1
  loop
    execute format('create index %I on %I (tenant, n)', part || '_tenant', part);
    execute format('alter index message_tenant attach partition %I', part || '_tenant');
  end loop;
end $$;
-- +goose StatementEnd

-- Null in rows of before, and in those of messages that were scheduled as they
-- were accepted; fair fills it in when they are due.
alter table waiting add column tenant int;
create index waiting_tenant on waiting (lane, tenant, due);
create index waiting_nameless on waiting (lane, due) where tenant is null;

-- +goose StatementBegin
create function waiting_tenant() returns trigger language plpgsql as $$
begin
  select m.tenant into new.tenant from message m where m.n = new.n;
  return new;
end $$;
-- +goose StatementEnd
create trigger waiting_tenant before insert on waiting
  for each row when (new.tenant is null) execute function waiting_tenant();

-- fair is what of a lane may be attempted, at most most due and most unclaimed
-- of each of the tenants, oldest first; rank counts each tenant's. It ends each
-- tenant's rows with one that has no n, but a mark: up to it nothing of the
-- tenant's is unclaimed, and the next call passes it back. It gives up after
-- 200 ms: tenants that have no such row were not looked at.
-- +goose StatementBegin
create function fair(lane_ smallint, horizon bigint, tenants int[], marks bigint[], most int)
returns table (tenant int, rank int, n bigint, no smallint, mark bigint)
language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_bitmapscan = off set enable_sort = off
set plan_cache_mode = force_generic_plan
as $$
declare
  window_ constant int := 2000; -- what one tenant may cost a call
  start   constant timestamptz := clock_timestamp();
  low     bigint;
  first   bigint;
  looked  int;
begin
  select l.cursor into low from lane l where l.code = lane_;
  with x as (
    select w.n from waiting w where w.lane = lane_ and w.tenant is null and w.due <= start
    order by w.due limit 1000 for update skip locked)
  update waiting w set tenant = m.tenant from x join message m on m.n = x.n where w.n = x.n;

  for i in 1 .. cardinality(tenants) loop
    tenant := tenants[i];
    rank := 0;
    mark := null;
    for n, no in
      select w.n, w.no from waiting w
      where w.lane = lane_ and (w.tenant, w.due) >= (tenants[i], '-infinity') and (w.tenant, w.due) <= (tenants[i], start)
      order by w.tenant, w.due limit most
    loop
      rank := rank + 1;
      return next;
    end loop;

    mark := greatest(marks[i], low);
    first := null;
    looked := 0;
    rank := 0;
    no := 1;
    -- By rows of both columns, in their order and never sorted: so no statistics
    -- lead away from message_tenant, to the backlog of all.
    for n in
      select m.n from message m
      where (m.tenant, m.n) > (tenants[i], mark) and (m.tenant, m.n) <= (tenants[i], horizon) and m.n > low and m.n <= horizon
      order by m.tenant, m.n limit window_
    loop
      looked := looked + 1;
      if exists (select from attempt a where a.n = fair.n and a.no = 1) or exists (select from waiting w where w.n = fair.n) then
        if first is null then
          mark := n;
        end if;
        continue;
      end if;
      first := coalesce(first, n);
      rank := rank + 1;
      return next;
      exit when rank = most;
    end loop;
    if first is null and looked < window_ then
      mark := greatest(mark, horizon);
    end if;
    n := null;
    return next;
    exit when clock_timestamp() - start > interval '200 ms';
  end loop;
end $$;
-- +goose StatementEnd

-- lane_size is how many messages of a lane nobody has claimed, by three counts
-- of whole ranges: each first attempt, and each leave for one, has its message.
-- Beyond most rows above the cursor it says less.
-- +goose StatementBegin
create function lane_size(lane_ smallint, most bigint) returns bigint
language plpgsql stable
set enable_seqscan = off set plan_cache_mode = force_generic_plan
as $$
declare
  lo bigint;
  hi constant bigint := (lane_::bigint + 1) << 57;
begin
  select l.cursor into lo from lane l where l.code = lane_;
  return greatest(0,
    (select count(*) from (select from message m where m.n > lo and m.n < hi limit most) x)
    - (select count(*) from (select from attempt a where a.n > lo and a.n < hi and a.no = 1 limit most) x)
    - (select count(*) from waiting w where w.n > lo and w.n < hi and w.no = 1));
end $$;
-- +goose StatementEnd

-- tenant_backlogs is how many messages each tenant has from its first unclaimed
-- one on, up to most. That one is found by bisection to within a thousand
-- submissions: a tenant's messages are claimed nearly in order.
-- +goose StatementBegin
create function tenant_backlogs(lane_ smallint, most bigint) returns table (tenant int, backlog bigint)
language plpgsql stable
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set plan_cache_mode = force_generic_plan
as $$
declare
  within constant bigint := 1000::bigint << 6;
  low bigint;
  lo  bigint;
  hi  bigint;
  top bigint;
  mid bigint;
  at_ bigint;
begin
  select l.cursor into low from lane l where l.code = lane_;
  select max(m.n) into top from message m where m.n > low and m.n < (lane_::bigint + 1) << 57;
  if top is null then
    return;
  end if;
  for tenant in select t.id from tenant t order by t.id loop
    lo := low;
    hi := top;
    while hi - lo > within loop
      mid := lo + (hi - lo) / 2;
      select m.n into at_ from message m
      where (m.tenant, m.n) > (tenant_backlogs.tenant, mid) and (m.tenant, m.n) <= (tenant_backlogs.tenant, hi) and m.n > mid and m.n <= hi
      order by m.tenant, m.n limit 1;
      if at_ is not null and (exists (select from attempt a where a.n = at_ and a.no = 1) or exists (select from waiting w where w.n = at_)) then
        lo := at_;
      else
        hi := mid;
      end if;
    end loop;
    select count(*) into backlog from (
      select from message m
      where (m.tenant, m.n) > (tenant_backlogs.tenant, lo) and (m.tenant, m.n) <= (tenant_backlogs.tenant, top) and m.n > lo and m.n <= top
      order by m.tenant, m.n limit most) x;
    if backlog > 0 then
      return next;
    end if;
  end loop;
end $$;
-- +goose StatementEnd

-- +goose Down
drop function fair, lane_size, tenant_backlogs;
drop trigger waiting_tenant on waiting;
drop function waiting_tenant;
alter table waiting drop column tenant;
drop index message_tenant;
