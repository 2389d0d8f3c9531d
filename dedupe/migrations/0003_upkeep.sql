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
-- what they lost, and a lane refuses claims below its floor. What takes long
-- comes before the locks that everybody else waits for.
-- +goose StatementBegin
create function drop_era(w int, only_content boolean) returns boolean language plpgsql as $$
declare
  lanes   constant int[] := '{5,6,7,9,10,11}';
  l       int;
  t       text;
  lo      bigint;
  hi      bigint;
  streams bigint[];
  tops    bigint[];
begin
  foreach l in array lanes loop
    lo := (l::bigint << 57) | ((w::bigint << 23) << 6);
    hi := (l::bigint << 57) | (((w::bigint + 1) << 23) << 6);
    if exists (select from message_state s where s.n >= lo and s.n < hi
               and s.state not in ('canceled', 'expired', 'superseded', 'sent', 'failed')) then
      return false;
    end if;
  end loop;
  if only_content then
    foreach l in array lanes loop
      execute format('drop table if exists %I', format('content_%s_%s', l, w));
    end loop;
    update era set content = false where no = w;
    return true;
  end if;
  foreach l in array lanes loop
    lo := (l::bigint << 57) | ((w::bigint << 23) << 6);
    hi := (l::bigint << 57) | (((w::bigint + 1) << 23) << 6);
    delete from decision where n >= lo and n < hi;
    select streams || array_agg(x.stream), tops || array_agg(x.top) into streams, tops
    from (select m.stream, max(m.seq) as top from message m where m.n >= lo and m.n < hi group by m.stream) x;
  end loop;
  delete from identity where submission >= (w::bigint << 23) and submission < ((w::bigint + 1) << 23);
  delete from era where no = w;
  update lane set floor = greatest(floor, top - 1), cursor = greatest(cursor, top - 1)
  from (select code as c, (code::bigint << 57) | (((w::bigint + 1) << 23) << 6) as top from lane) x where code = x.c;
  -- In the order in which accept_batch locks them.
  perform from counter c where c.stream = any (streams) order by c.stream for update;
  update counter c set floor = greatest(c.floor, x.top)
  from (select u.stream, max(u.top) as top from unnest(streams, tops) as u(stream, top) group by u.stream) x
  where c.stream = x.stream;
  foreach t in array '{content,message,attempt,outcome}'::text[] loop
    foreach l in array lanes loop
      execute format('drop table if exists %I', format('%s_%s_%s', t, l, w));
    end loop;
  end loop;
  return true;
end $$;
-- +goose StatementEnd

-- +goose Down
drop function drop_era;
drop view message_state;
