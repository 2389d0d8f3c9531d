-- The newest transaction may still run. A snapshot's xmax is one past the newest
-- that has ended, so it says nothing of those that began later; one's own id is
-- beyond all that were given out before.

-- +goose Up
-- +goose StatementBegin
do $$
declare
  f    record;
  was  text;
  made text;
begin
  for f in
    select p.oid, x.* from (values
      -- A claim that began before its process was given up has an id below this.
      ('sweep_doubts', 'pg_snapshot_xmax(pg_current_snapshot())', 'pg_current_xact_id()'),
      -- Who looked before the cursor was set back moves it no more.
      ('unclaimed', 'l.cursor < to_', 'l.cursor = was')) x(name, old, new)
    join pg_proc p on p.proname = x.name and pg_function_is_visible(p.oid)
  loop
    was := pg_get_functiondef(f.oid);
    made := replace(was, f.old, f.new);
    if made = was then
      raise exception 'function % is not as it was made', f.name;
    end if;
    execute made;
  end loop;
end $$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
do $$
declare
  f record;
begin
  for f in
    select p.oid, x.* from (values
      ('sweep_doubts', 'pg_snapshot_xmax(pg_current_snapshot())', 'pg_current_xact_id()'),
      ('unclaimed', 'l.cursor < to_', 'l.cursor = was')) x(name, old, new)
    join pg_proc p on p.proname = x.name and pg_function_is_visible(p.oid)
  loop
    execute replace(pg_get_functiondef(f.oid), f.new, f.old);
  end loop;
end $$;
-- +goose StatementEnd
