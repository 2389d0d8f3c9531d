-- An era's partitions are made beside their tables and then attached, so that
-- nobody who reads or writes waits for it.

-- +goose Up
-- +goose StatementBegin
do $$
declare
  was  text;
  made text;
begin
  select pg_get_functiondef(p.oid) into strict was from pg_proc p where p.proname = 'add_era' and pg_function_is_visible(p.oid);
  made := replace(was, $old$execute format('create table %I partition of %I for values from (%s) to (%s)', part, t, lo, hi);$old$,
    $new$execute format('create table %I (like %I including all)', part, t);
      execute format('alter table %I attach partition %I for values from (%s) to (%s)', t, part, lo, hi);$new$);
  if made = was then
    raise exception 'function add_era is not as it was made';
  end if;
  execute made;
end $$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
do $$
begin
  execute (
    select replace(pg_get_functiondef(p.oid), $new$execute format('create table %I (like %I including all)', part, t);
      execute format('alter table %I attach partition %I for values from (%s) to (%s)', t, part, lo, hi);$new$,
      $old$execute format('create table %I partition of %I for values from (%s) to (%s)', part, t, lo, hi);$old$)
    from pg_proc p where p.proname = 'add_era' and pg_function_is_visible(p.oid));
end $$;
-- +goose StatementEnd
