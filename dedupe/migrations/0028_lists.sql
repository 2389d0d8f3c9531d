-- Lists and audits.
--
-- Numbers that are nobody's: what only PostgreSQL had before it was rolled back. A list
-- that came upon one of them, halving, took all that is above it for newer than where
-- it goes on, and left it out.
--
-- Outcomes are looked up for each message, whatever is believed of their number: while
-- PostgreSQL had counted an era's messages, but its outcomes when there were none, an
-- audit read all of these again for each message.

-- +goose Up
-- +goose StatementBegin
create or replace function number_before(stream_ bigint, submission bigint) returns bigint language plpgsql stable as $$
declare
  lo   bigint;
  hi   bigint;
  mid  bigint;
  seq_ bigint;
  at   bigint;
begin
  select c.floor, c.last into lo, hi from counter c where c.stream = stream_;
  while lo < hi loop
    mid := (lo + hi + 1) / 2;
    select m.seq, (m.n >> 6) & 2251799813685247 into seq_, at from message m
    where m.stream = stream_ and m.seq > lo and m.seq <= mid order by m.seq desc limit 1;
    if at >= submission then
      hi := seq_ - 1;
    else -- or all of them are nobody's
      lo := mid;
    end if;
  end loop;
  return lo;
end $$;
-- +goose StatementEnd

create or replace view message_state as
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
left join lateral (select o.kind from outcome o where o.n = m.n and o.no = a.no limit 1) o on true
left join decision d on d.n = m.n and d.no = a.no
left join doubt t on t.n = m.n and t.no = a.no
left join waiting w on w.n = m.n;

-- +goose Down
-- The function and the view do the same for those that came before: they stay.
