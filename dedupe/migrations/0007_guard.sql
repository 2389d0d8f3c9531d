-- What the numbering guard (guard.go) restores a lost number from, beside the
-- messages themselves; and keys that are required by name of their columns, so
-- that nothing is written twice while one of them is missing.

-- +goose Up

-- The last number of the stream that retention has dropped. counter.floor is
-- lost with its row; this isn't.
alter table stream add column mark bigint not null default 0;
update stream s set mark = c.floor from counter c where c.stream = s.id and c.floor > 0;

-- +goose StatementBegin
create function keep_mark() returns trigger language plpgsql as $$
begin
  update stream s set mark = new.floor where s.id = new.stream and s.mark < new.floor;
  return null;
end $$;
-- +goose StatementEnd
create trigger keep_mark after insert or update of floor on counter
  for each row when (new.floor > 0) execute function keep_mark();

-- The last submission number that the guard has seen given out.
create table numbering (single boolean primary key default true check (single), position bigint not null);
insert into numbering (position) select case when is_called then last_value else 0 end from position;

-- Streams that a process could not number. The guard looks at them first.
create table suspect (stream bigint primary key);

-- "on conflict do nothing" works without the key, and would let a repeated
-- idempotency key in, or an attempt twice. Naming the columns fails instead.
-- +goose StatementBegin
do $$
declare
  f record;
begin
  for f in
    select p.oid, case p.proname when 'accept_rows' then '(key)' else '(n, no)' end as cols from pg_proc p
    where p.proname in ('accept_rows', 'claim_batch', 'record_batch', 'hold_message', 'end_message', 'decide_doubt')
      and pg_function_is_visible(p.oid)
  loop
    execute replace(pg_get_functiondef(f.oid), 'on conflict do nothing', 'on conflict ' || f.cols || ' do nothing');
  end loop;
end $$;
-- +goose StatementEnd

-- +goose Down
-- The functions work without the change as well as with it: they stay.
drop table suspect, numbering;
drop trigger keep_mark on counter;
drop function keep_mark;
alter table stream drop column mark;
