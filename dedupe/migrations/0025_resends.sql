-- A message whose answer was lost may have been taken. While it waits to be sent
-- again, what its provider tells still decides; and it does not end as if it
-- certainly had not been handed over.

-- +goose Up

-- end_message ends a message that certainly was not handed over, by an attempt
-- of a kind, and says whether it has that end now. A lost race is decided by the
-- attempt's key. What a policy has resent may have been taken; if a person
-- decided that, it is taken for not.
-- +goose StatementBegin
create or replace function end_message(n_ bigint, kind_ smallint, worker_ int, note_ text) returns boolean language plpgsql as $$
declare
  last attempt;
  made int;
begin
  for i in 1..5 loop
    select * into last from attempt a where a.n = n_ order by a.no desc limit 1;
    if last.kind = kind_ then
      return true;
    end if;
    if last.kind = 5 then
      insert into outcome (n, no, kind, at, code) values (n_, last.no, 5, clock_timestamp(), 'released') on conflict (n, no) do nothing;
    elsif last.n is not null and not coalesce(
      (select d.kind = 'resend' and d.by not like 'policy:%' from decision d where d.n = n_ and d.no = last.no),
      exists (select from outcome o where o.n = n_ and o.no = last.no and o.kind in (2, 5))) then
      return false;
    end if;
    insert into attempt (n, no, kind, worker, token, at, note)
    values (n_, coalesce(last.no, 0) + 1, kind_, worker_, 0, clock_timestamp(), note_)
    on conflict (n, no) do nothing;
    get diagnostics made = row_count;
    if made = 1 then
      delete from waiting where n = n_;
      return true;
    end if;
  end loop;
  return false;
end $$;
-- +goose StatementEnd

-- stands_in makes attempt no of a message in nobody's name, with its outcome: it
-- hands nothing over, and keeps everybody else from it. False: somebody has made it.
-- +goose StatementBegin
create function stands_in(n_ bigint, no_ smallint, kind_ smallint, provider_ text, code_ text, note_ text) returns boolean language plpgsql as $$
begin
  insert into attempt (n, no, kind, worker, token, at, note) values (n_, no_, 1, 0, 0, clock_timestamp(), note_) on conflict (n, no) do nothing;
  if not found then
    return false;
  end if;
  insert into outcome (n, no, kind, at, provider, code, reply) values (n_, no_, kind_, clock_timestamp(), provider_, code_, note_);
  delete from waiting w where w.n = n_ and w.no = no_;
  return true;
end $$;
-- +goose StatementEnd

-- settle_event does what follows from an event: who tells of a message has
-- taken it, so a doubt is decided, and what was lost and waits to be sent again is
-- not; and one that bounced for good has failed, also after it was sent. An
-- attempt that is still open is left to its outcome.
-- +goose StatementBegin
create or replace function settle_event(n_ bigint, kind_ text, provider_ text) returns boolean language plpgsql as $$
declare
  by_  constant text := 'policy:' || provider_ || '_events';
  last attempt;
  end_ smallint;
begin
  perform pg_current_xact_id();
  if exists (select from doubt d where d.n = n_) then
    return decide_doubt(n_, case kind_ when 'bounced' then 'drop' else 'sent' end, by_, case kind_ when 'bounced' then 'recipient_gone' else kind_ end);
  end if;
  select * into last from attempt a where a.n = n_ order by a.no desc limit 1;
  select o.kind into end_ from outcome o where o.n = n_ and o.no = last.no;
  if last.kind = 1 and coalesce(end_, 4) = 4 and exists (select from decision d where d.n = n_ and d.no = last.no and d.kind = 'resend') then
    last.no := last.no + 1;
    if not stands_in(n_, last.no, 1::smallint, provider_, kind_, 'not handed over: ' || provider_ || ' tells that it has it') then
      return false;
    end if;
    end_ := 1;
    if kind_ <> 'bounced' then
      return true;
    end if;
  end if;
  if last.kind = 1 and end_ = 1 and kind_ = 'bounced' then
    insert into decision (n, no, kind, by, reason) values (n_, last.no, 'drop', by_, 'recipient_gone') on conflict (n, no) do nothing;
    return found;
  end if;
  return false;
end $$;
-- +goose StatementEnd

-- weigh_resends looks at what is about to be sent again after a lost answer. If its
-- provider told of it, it has been taken: unless a person knew that. If its life is
-- over, or a newer one is there, and a policy had it resent, it is in doubt.
-- +goose StatementBegin
create function weigh_resends(ns bigint[], nos smallint[]) returns void
language plpgsql
set enable_seqscan = off set enable_mergejoin = off set enable_hashjoin = off set plan_cache_mode = force_generic_plan
as $$
declare
  r     record;
  end_  smallint;
begin
  for r in
    select a.n, a.no, d.by like 'policy:%' as policy, e.kind, e.provider
    from unnest(ns, nos) as a(n, no)
    cross join lateral (select d.by, d.at from decision d where d.n = a.n and d.no = a.no - 1 and d.kind = 'resend' offset 0) d
    left join lateral (
      select e.kind, e.provider from event e
      where e.n = a.n and (d.by like 'policy:%' or e.told_at > d.at) order by e.kind limit 1) e on true
    where a.no > 1
    order by a.n
  loop
    if r.kind is not null then
      perform settle_event(r.n, r.kind, r.provider);
    elsif r.policy and (exists (select from message m where m.n = r.n and m.expires_at <= clock_timestamp())
                     or exists (select from superseded s where s.n = r.n & ~63::bigint)) then
      select o.kind into end_ from outcome o where o.n = r.n and o.no = r.no - 1;
      if coalesce(end_, 4) = 4 and stands_in(r.n, r.no, 4::smallint, null, 'repeat_too_late',
        'not handed over: an earlier answer was lost, and it is too late to send it again') then
        insert into doubt (n, no, cause) values (r.n, r.no, 'unknown') on conflict (n, no) do nothing;
      end if;
    end if;
  end loop;
end $$;
-- +goose StatementEnd

-- +goose Down
-- end_message and settle_event work for those that came before as well.
create or replace function weigh_resends(ns bigint[], nos smallint[]) returns void language sql as '';
