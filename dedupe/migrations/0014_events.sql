-- What providers tell of messages that they took.

-- +goose Up
create table event (
  n        bigint not null,
  kind     text not null check (kind in ('delivered', 'bounced', 'soft_bounce', 'complained')),
  provider text not null,
  at       timestamptz not null, -- by the provider's clock
  detail   text not null,
  told_at  timestamptz not null default clock_timestamp(),
  primary key (n, kind, provider, at)
);

-- settle_event does what follows from an event: who tells of a message has
-- taken it, so a doubt is decided; and one that bounced for good has failed,
-- also after it was sent. An attempt that is still open is left to its outcome.
-- +goose StatementBegin
create function settle_event(n_ bigint, kind_ text, provider_ text) returns boolean language plpgsql as $$
declare
  by_  constant text := 'policy:' || provider_ || '_events';
  last attempt;
begin
  perform pg_current_xact_id();
  if exists (select from doubt d where d.n = n_) then
    return decide_doubt(n_, case kind_ when 'bounced' then 'drop' else 'sent' end, by_, case kind_ when 'bounced' then 'recipient_gone' else kind_ end);
  elsif kind_ <> 'bounced' then
    return false;
  end if;
  select * into last from attempt a where a.n = n_ order by a.no desc limit 1;
  if last.kind = 1 and exists (select from outcome o where o.n = n_ and o.no = last.no and o.kind = 1) then
    insert into decision (n, no, kind, by, reason) values (n_, last.no, 'drop', by_, 'recipient_gone') on conflict (n, no) do nothing;
    return found;
  end if;
  return false;
end $$;
-- +goose StatementEnd

-- +goose Down
drop function settle_event;
drop table event;
