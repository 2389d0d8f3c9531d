-- A decision may say which attempt it is about. A request to decide that comes
-- once more, after another attempt is in doubt, then decides nothing.

-- +goose Up
-- +goose StatementBegin
do $$
declare
  was  text;
  made text;
begin
  select pg_get_functiondef(p.oid) into strict was from pg_proc p where p.proname = 'decide_doubt' and pg_function_is_visible(p.oid);
  made := replace(replace(was, 'reason_ text)', 'reason_ text, no_ integer DEFAULT 0)'), 'if not found or', 'if not found or no_ not in (0, d.no) or');
  if made not like '%no_ integer DEFAULT 0)%no_ not in (0, d.no)%' then
    raise exception 'function decide_doubt is not as it was made';
  end if;
  drop function decide_doubt;
  execute made;
end $$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
do $$
declare
  made text;
begin
  select replace(replace(pg_get_functiondef(p.oid), 'reason_ text, no_ integer DEFAULT 0)', 'reason_ text)'), 'if not found or no_ not in (0, d.no) or', 'if not found or')
  into strict made from pg_proc p where p.proname = 'decide_doubt' and pg_function_is_visible(p.oid);
  drop function decide_doubt;
  execute made;
end $$;
-- +goose StatementEnd
