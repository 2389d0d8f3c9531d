-- What the trail tells of messages that a rolled-back ledger lost for good, since
-- they had been in no topic: whoever submits them again shall not have them sent
-- again.

-- +goose Up

-- By the message's id: what certainly or perhaps was handed over, or is over.
create table told (
  id       bytea primary key check (octet_length(id) = 25),
  no       smallint not null,
  kind     smallint not null check (kind in (0, 1, 3, 4, 6)), -- as retrace_batch has it
  at       timestamptz not null,
  provider text,
  code     text
);

-- recall_told enters what is told of messages that are about to be claimed.
-- +goose StatementBegin
create function recall_told(ns bigint[], ids bytea[]) returns void
language plpgsql
set enable_seqscan = off set enable_mergejoin = off set enable_hashjoin = off set plan_cache_mode = force_generic_plan
as $$
declare
  r record;
begin
  for r in
    select u.n, t.* from unnest(ns, ids) u(n, id)
    join told t on t.id = u.id || set_byte('\x00'::bytea, 0, (u.n & 63)::int)
    cross join lateral (select from message m where m.n = u.n and m.id = u.id offset 0) m
    order by u.n
  loop
    perform retrace_batch(array[r.n], array[r.no], array[r.kind], array[substr(r.id, 1, 24)], array[r.at], array[r.provider], array[r.code]);
    delete from told t where t.id = r.id;
  end loop;
end $$;
-- +goose StatementEnd

-- +goose StatementBegin
do $$
declare
  made text;
begin
  select regexp_replace(pg_get_functiondef(p.oid), 'perform ledger_stands\(\);',
    'perform ledger_stands(); if exists (select from told) then perform recall_told(ns, ids); end if;') into strict made
  from pg_proc p where p.proname = 'claim_batch' and pg_function_is_visible(p.oid);
  execute made;
end $$;
-- +goose StatementEnd

-- +goose Down
create or replace function recall_told(ns bigint[], ids bytea[]) returns void language sql as '';
delete from told;
