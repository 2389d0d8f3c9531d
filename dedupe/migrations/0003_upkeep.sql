-- What is read off the hot path, and retention.

-- +goose Up

create view message_state as
select m.n, m.stream, m.seq,
  case
    when a.kind is null then case when w.n is null then 'queued' else 'waiting' end
    when a.kind = 2 then 'canceled'
    when a.kind = 3 then 'expired'
    when a.kind = 4 then 'superseded'
    when a.kind = 5 then case when o.kind = 5 then 'waiting' else 'held' end
    when d.kind = 'sent' then 'sent'
    when d.kind = 'drop' then 'failed'
    when d.kind = 'resend' then 'waiting'
    when o.kind = 1 then 'sent'
    when o.kind = 3 then 'failed'
    when o.kind = 4 then 'in_doubt'
    when o.kind in (2, 5) then 'waiting'
    when t.n is not null then 'in_doubt'
    else 'sending'
  end as state
from message m
left join lateral (select a.kind, a.no from attempt a where a.n = m.n order by a.no desc limit 1) a on true
left join outcome o on o.n = m.n and o.no = a.no
left join decision d on d.n = m.n and d.no = a.no
left join doubt t on t.n = m.n and t.no = a.no
left join waiting w on w.n = m.n;

-- drop_era drops what an era holds, or with only_content just that, if every
-- message in it has ended; it says whether it did. The streams keep the mark of
-- what they lost, and a lane refuses claims below its floor.
-- +goose StatementBegin
create function drop_era(w int, only_content boolean) returns boolean language plpgsql as $$
declare
  l  int;
  lo bigint;
  hi bigint;
begin
  foreach l in array '{5,6,7,9,10,11}'::int[] loop
    lo := (l::bigint << 57) | ((w::bigint << 23) << 6);
    hi := (l::bigint << 57) | (((w::bigint + 1) << 23) << 6);
    if exists (select from message_state s where s.n >= lo and s.n < hi
               and s.state not in ('canceled', 'expired', 'superseded', 'sent', 'failed')) then
      return false;
    end if;
  end loop;
  foreach l in array '{5,6,7,9,10,11}'::int[] loop
    execute format('drop table if exists %I', format('content_%s_%s', l, w));
    if only_content then
      continue;
    end if;
    lo := (l::bigint << 57) | ((w::bigint << 23) << 6);
    hi := (l::bigint << 57) | (((w::bigint + 1) << 23) << 6);
    update counter c set floor = greatest(c.floor, x.top)
    from (select m.stream, max(m.seq) as top from message m where m.n >= lo and m.n < hi group by m.stream) x
    where c.stream = x.stream;
    update lane set floor = greatest(floor, hi - 1), cursor = greatest(cursor, hi - 1) where code = l;
    delete from decision where n >= lo and n < hi;
    execute format('drop table %I', format('message_%s_%s', l, w));
    execute format('drop table %I', format('attempt_%s_%s', l, w));
    execute format('drop table %I', format('outcome_%s_%s', l, w));
  end loop;
  if only_content then
    update era set content = false where no = w;
  else
    delete from identity where submission >= (w::bigint << 23) and submission < ((w::bigint + 1) << 23);
    delete from era where no = w;
  end if;
  return true;
end $$;
-- +goose StatementEnd

-- +goose Down
drop function drop_era;
drop view message_state;
