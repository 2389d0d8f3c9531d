-- The resubmission shield: requests without an idempotency key that repeat
-- another's whole content and recipients. And quick reads of single messages.

-- +goose Up

-- What becomes of them while the shield is up.
alter table tenant add column repeats text not null default 'flag' check (repeats in ('off', 'flag', 'suppress'));

-- Submissions that repeat another. n is of the first message; first has the
-- first 24 bytes of the other's id.
create table repeated (
  n     bigint primary key,
  first bytea not null check (octet_length(first) = 24)
);

-- find_repeats finds, for submissions whose keys were made, which of their
-- tenants' that were accepted since then they repeat: the oldest. The keys have 6
-- bytes of a hash of the content, 4 of the time (in seconds) and 6 random ones. Nobody else looks for the
-- same before this transaction ends, so of two at once one finds the other. What
-- is in already repeats nothing: it is the same submission, tried again. With
-- suppress, only one counts of which something was or may yet be sent.
-- +goose StatementBegin
create function find_repeats(keys uuid[], prints bytea[], tenants int[], sinces timestamptz[])
returns table (ord int, key uuid, submission bigint, seq bigint, waits boolean, suppress boolean)
language plpgsql
set enable_seqscan = off set enable_mergejoin = off set enable_hashjoin = off set plan_cache_mode = force_generic_plan
as $$
begin
  perform pg_current_xact_id();
  -- Whoever stands still in the middle has the locks of others' counters.
  perform set_config('idle_in_transaction_session_timeout', '1s', true);
  perform pg_advisory_xact_lock(x.start) from (
    select distinct ('x' || substr(replace(k::text, '-', ''), 1, 12))::bit(48)::bigint as start from unnest(keys) k order by 1) x;
  return query
  select u.ord::int, e.key, e.submission, e.seq, e.waits, t.repeats = 'suppress'
  from unnest(keys, prints, tenants, sinces) with ordinality as u(key, print, tenant, since, ord)
  join tenant t on t.id = u.tenant and t.repeats <> 'off'
  cross join lateral (select left(u.key::text, 13) as start, -- the clocks of the doors differ
    lpad(to_hex(greatest(extract(epoch from u.since)::bigint - 300, 0)), 8, '0') as at) h
  cross join lateral (
    select i.key, i.submission, m.seq, exists (select from waiting w where w.n = m.n) as waits
    from (
      select * from identity i
      where i.key between (h.start || '-' || substr(h.at, 1, 4) || '-' || substr(h.at, 5, 4) || '-000000000000')::uuid
        and (h.start || '-ffff-ffff-ffffffffffff')::uuid
      order by i.key limit 256
    ) i
    cross join lateral (
      select m.n, m.seq, m.accepted_at from message m
      where m.n = (i.lane::bigint << 57) | (i.submission << 6) and m.accepted_at >= u.since offset 0
    ) m
    where i.print = u.print and (t.repeats = 'flag' or exists (
      select from message_state s join message x on x.n = s.n
      where s.n between m.n and m.n + i.count - 1
        and (s.state in ('sending', 'sent', 'in_doubt')
          or s.state in ('queued', 'waiting', 'held') and x.expires_at > clock_timestamp() and not exists (select from superseded y where y.n = m.n))))
    order by m.accepted_at, m.n limit 1
  ) e
  where not exists (select from identity i where i.key = u.key);
end $$;
-- +goose StatementEnd

-- What is read of single messages, by index alone: made for one question, a plan
-- over all partitions takes longer than the answer.

-- +goose StatementBegin
create function known_keys(keys uuid[])
returns table (key uuid, submission bigint, print bytea, seq bigint, waits boolean)
language plpgsql stable
set enable_seqscan = off set enable_mergejoin = off set enable_hashjoin = off set plan_cache_mode = force_generic_plan
as $$
begin
  return query
  select i.key, i.submission, i.print, m.seq, exists (select from waiting w where w.n = m.n)
  from unnest(keys) u(key)
  join identity i on i.key = u.key
  left join lateral (select m.n, m.seq from message m where m.n = (i.lane::bigint << 57) | (i.submission << 6) offset 0) m on true;
end $$;
-- +goose StatementEnd

-- +goose StatementBegin
create function read_messages(ns bigint[])
returns table (n bigint, id bytea, tenant int, stream text, seq bigint, recipient text, accepted_at timestamptz, expires_at timestamptz,
  trace text, entered_at timestamptz, due timestamptz, held bigint, doubted boolean, repeats bytea)
language plpgsql stable
set enable_seqscan = off set enable_mergejoin = off set enable_hashjoin = off set plan_cache_mode = force_generic_plan
as $$
begin
  return query
  select m.n, m.id, m.tenant, s.name, m.seq, m.recipient, m.accepted_at, m.expires_at, coalesce(m.trace, ''), m.entered_at,
    w.due, w.held, exists (select from doubt d where d.n = m.n), (select r.first from repeated r where r.n = m.n & ~63::bigint)
  from unnest(ns) u(n)
  cross join lateral (select * from message m where m.n = u.n offset 0) m
  join stream s on s.id = m.stream
  left join waiting w on w.n = m.n;
end $$;
-- +goose StatementEnd

-- +goose StatementBegin
create function read_attempts(ns bigint[])
returns table (n bigint, no smallint, kind smallint, worker int, at timestamptz, note text, outcome smallint, outcome_at timestamptz,
  provider text, code text, reply text, reference text, decision text, by text, reason text, decided_at timestamptz)
language plpgsql stable
set enable_seqscan = off set enable_mergejoin = off set enable_hashjoin = off set plan_cache_mode = force_generic_plan
as $$
begin
  return query
  select a.n, a.no, a.kind, a.worker, a.at, coalesce(a.note, ''), coalesce(o.kind, 0::smallint), o.at,
    coalesce(o.provider, ''), coalesce(o.code, ''), coalesce(o.reply, ''), coalesce(o.reference, ''),
    coalesce(d.kind, ''), coalesce(d.by, ''), coalesce(d.reason, ''), d.at
  from unnest(ns) u(n)
  cross join lateral (select * from attempt a where a.n = u.n offset 0) a
  left join lateral (select * from outcome o where o.n = a.n and o.no = a.no offset 0) o on true
  left join decision d on d.n = a.n and d.no = a.no
  order by a.n, a.no;
end $$;
-- +goose StatementEnd

-- +goose Down
drop function find_repeats, known_keys, read_messages, read_attempts;
drop table repeated;
alter table tenant drop column repeats;
