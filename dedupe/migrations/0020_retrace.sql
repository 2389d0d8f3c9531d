-- What had failed, was sent, is open or in doubt in a backup, or isn't there, may
-- have been sent again since, by a replay or a decision that the restored ledger has
-- lost. The attempt that followed proves the decision, and not that the one before
-- was deferred, unless the ledger says so.

-- +goose Up
-- +goose StatementBegin
do $$
declare
  was  text;
  made text;
begin
  select pg_get_functiondef(p.oid) into strict was from pg_proc p where p.proname = 'retrace_batch' and pg_function_is_visible(p.oid);
  made := replace(was, $old$      insert into outcome (n, no, kind, at, code)
      select r.n, k, 2, r.at, 'reconciled'
      where not exists (select from decision d where d.n = r.n and d.no = k and d.kind = 'resend')
      on conflict (n, no) do nothing;
$old$, $new$      insert into decision as e (n, no, kind, by, reason)
      select r.n, k, 'resend', 'reconciled', 'attempt ' || k + 1 || ' was made'
      where not exists (select from outcome o where o.n = r.n and o.no = k and o.kind in (2, 5))
         or exists (select from decision d where d.n = r.n and d.no = k)
      on conflict (n, no) do update set kind = 'resend', by = excluded.by, at = clock_timestamp(),
        reason = left(excluded.reason || ' (before: ' || e.kind || ' by ' || e.by || ', ' || e.reason || ')', 2000)
      where e.kind <> 'resend';
$new$);
  if made = was then
    raise exception 'function retrace_batch is not as it was made';
  end if;
  execute made;
end $$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
do $$
begin
  execute (
    select regexp_replace(pg_get_functiondef(p.oid), '      insert into decision as e .*? where e\.kind <> ''resend'';\n', $old$      insert into outcome (n, no, kind, at, code)
      select r.n, k, 2, r.at, 'reconciled'
      where not exists (select from decision d where d.n = r.n and d.no = k and d.kind = 'resend')
      on conflict (n, no) do nothing;
$old$)
    from pg_proc p where p.proname = 'retrace_batch' and pg_function_is_visible(p.oid));
end $$;
-- +goose StatementEnd
