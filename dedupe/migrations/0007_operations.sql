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

-- +goose Down
drop function audit_window;
