-- The ledger's feed, while Kafka is away: it brings what is above the horizon as well.
-- Only the cursor has to wait for the transactions that run; a message that is there can
-- go, and had to wait for a second or two, or as long as anybody's transaction took.

-- +goose Up
-- beyond is the oldest messages above after, up to upto, that have neither an attempt
-- nor a waiting row, at most most. Both are of one lane.
-- +goose StatementBegin
create function beyond(after bigint, upto bigint, most int)
returns table (n bigint, id bytea, accepted_at timestamptz, trace text)
language plpgsql stable
set enable_seqscan = off set enable_hashjoin = off set enable_nestloop = off set plan_cache_mode = force_generic_plan
as $$
begin
  return query
  select m.n, m.id, m.accepted_at, m.trace from message m
  where m.n > after and m.n <= upto
    and not exists (select from attempt a where a.n = m.n and a.no = 1 and a.n > after and a.n <= upto)
    and not exists (select from waiting w where w.n = m.n and w.n > after and w.n <= upto)
  order by m.n limit most;
end $$;
-- +goose StatementEnd

-- +goose Down
drop function beyond;
