-- A clock that goes back, attempts whose numbers come again after a restore, replays
-- to suppressed recipients, leaves that nobody uses any more, and the count of a large
-- backlog.

-- +goose Up
-- +goose StatementBegin
do $$
declare
  f    record;
  was  text;
  made text;
begin
  for f in
    select p.oid, x.* from (values
      ('supersede', $old$do update set at = excluded.at, n = excluded.n,$old$, $new$do update set at = greatest(k.at, excluded.at), n = excluded.n,$new$),
      -- Nothing was accepted in a time to come: then the clock went back, and what is
      -- accepted now is newer, until it has caught up.
      ('supersede', $old$where (k.at, k.n & within) < (excluded.at, excluded.n & within);$old$,
        $new$where (k.at, k.n & within) < (excluded.at, excluded.n & within) or k.at > clock_timestamp() and excluded.at >= now() - interval '5 s';$new$),
      -- That an attempt was not taken says nothing of one that was made since, with its
      -- number or one before, by the restored ledger; and brings back no message.
      ('retrace_batch', $old$    continue when not exists (select from message m where m.n = r.n and m.id = r.id);
$old$, $new$    continue when not exists (select from message m where m.n = r.n and m.id = r.id);
    continue when r.kind in (2, 3, 5) and exists (select from attempt a
      where a.n = r.n and a.no <= r.no and (a.kind in (2, 3, 4) or a.at > r.at + interval '5 s'));
$new$),
      ('retrace_batch', $old$    if r.kind in (2, 5) and not exists$old$,
        $new$    if r.kind in (2, 5) and exists (select from outcome o where o.n = r.n and o.no = r.no and o.kind in (2, 5)) and not exists$new$),
      -- By filter, nobody who is gone or has complained. (No text can read as that
      -- option of the content: see tags_of.)
      ('replay_judge', $old$select m.n, m.expires_at from message m$old$, $new$select m.n, m.expires_at, m.tenant, m.recipient, m.test from message m$new$),
      ('replay_judge', $old$    when not exists (select from content c where c.n = f.n & ~63::bigint) then 'erased'
$old$, $new$    when not exists (select from content c where c.n = f.n & ~63::bigint) then 'erased'
    when r.n is null and not f.test
      and exists (select from suppression p where p.tenant = f.tenant and p.channel = (f.n >> 59)::smallint
        and p.digest = suppression_digest(f.tenant, (f.n >> 59)::smallint, f.recipient) and p.cleared_at is null)
      and not exists (select from content c where c.n = f.n & ~63::bigint and position('"bypass_suppression":true'::bytea in c.body) > 0)
      then 'suppressed'
$new$),
      ('drop_era', $old$    delete from decision where n >= lo and n < hi;
$old$, $new$    delete from decision where n >= lo and n < hi;
    delete from waiting where n >= lo and n < hi;
$new$)) x(name, old, new)
    join pg_proc p on p.proname = x.name and pg_function_is_visible(p.oid)
  loop
    was := pg_get_functiondef(f.oid);
    made := replace(was, f.old, f.new);
    if made = was then
      raise exception 'function % is not as it was made', f.name;
    end if;
    execute made;
  end loop;
end $$;
-- +goose StatementEnd

-- lane_left counts, up to about most, what of a lane up to mark nobody has claimed
-- yet, by counts of whole ranges: each first attempt, and each leave for one, has its
-- message. After 2 s it says what it has found by then, if that is anything.
-- +goose StatementBegin
create or replace function lane_left(lane_ smallint, mark bigint, most bigint) returns bigint
language plpgsql stable
set enable_seqscan = off set plan_cache_mode = force_generic_plan
as $$
declare
  wide  constant bigint := 65536::bigint << 6;
  start constant timestamptz := clock_timestamp();
  lo    bigint;
  hi    bigint;
  top   bigint;
  left_ bigint := 0;
begin
  select l.cursor into lo from lane l where l.code = lane_;
  select m.n into top from message m where m.n > lo and m.n <= mark order by m.n desc limit 1;
  while lo < top and left_ < most and (left_ = 0 or clock_timestamp() - start < interval '2 s') loop
    hi := least(top, lo + wide);
    left_ := left_
      + (select count(*) from message m where m.n > lo and m.n <= hi)
      - (select count(*) from attempt a where a.n > lo and a.n <= hi and a.no = 1)
      - (select count(*) from waiting w where w.n > lo and w.n <= hi and w.no = 1
         and not exists (select from attempt a where a.n = w.n and a.no = 1));
    lo := hi;
  end loop;
  return greatest(0, left_);
end $$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
create or replace function lane_left(lane_ smallint, mark bigint, most bigint) returns bigint
language sql stable
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
  select count(*) from (
    select from message m
    where m.n > (select l.cursor from lane l where l.code = lane_) and m.n <= mark
      and not exists (select from attempt a where a.n = m.n and a.no = 1)
      and not exists (select from waiting w where w.n = m.n)
    limit most) x
$$;
-- +goose StatementEnd
-- +goose StatementBegin
do $$
declare
  f record;
begin
  for f in
    select p.oid, x.* from (values
      ('supersede', $old$do update set at = excluded.at, n = excluded.n,$old$, $new$do update set at = greatest(k.at, excluded.at), n = excluded.n,$new$),
      ('supersede', '', $new$ or k.at > clock_timestamp() and excluded.at >= now() - interval '5 s'$new$),
      ('retrace_batch', '', $new$    continue when r.kind in (2, 3, 5) and exists (select from attempt a
      where a.n = r.n and a.no <= r.no and (a.kind in (2, 3, 4) or a.at > r.at + interval '5 s'));
$new$),
      ('retrace_batch', '', $new$ and exists (select from outcome o where o.n = r.n and o.no = r.no and o.kind in (2, 5))$new$),
      ('replay_judge', $old$select m.n, m.expires_at from message m$old$, $new$select m.n, m.expires_at, m.tenant, m.recipient, m.test from message m$new$),
      ('replay_judge', '', $new$    when r.n is null and not f.test
      and exists (select from suppression p where p.tenant = f.tenant and p.channel = (f.n >> 59)::smallint
        and p.digest = suppression_digest(f.tenant, (f.n >> 59)::smallint, f.recipient) and p.cleared_at is null)
      and not exists (select from content c where c.n = f.n & ~63::bigint and position('"bypass_suppression":true'::bytea in c.body) > 0)
      then 'suppressed'
$new$),
      ('drop_era', '', $new$    delete from waiting where n >= lo and n < hi;
$new$)) x(name, old, new)
    join pg_proc p on p.proname = x.name and pg_function_is_visible(p.oid)
  loop
    execute replace(pg_get_functiondef(f.oid), f.new, f.old);
  end loop;
end $$;
-- +goose StatementEnd
