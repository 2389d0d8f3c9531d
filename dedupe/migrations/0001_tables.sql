-- The ledger's tables. doc.go has the state diagram and the invariants.

-- +goose Up

create table tenant (
  id         int generated always as identity primary key,
  name       text not null unique check (name ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
  domains    text[] not null default '{}',
  created_at timestamptz not null default clock_timestamp()
);

create table api_key (
  id         bigint generated always as identity primary key,
  tenant     int not null references tenant,
  prefix     text not null unique,
  hash       bytea not null check (octet_length(hash) = 32),
  scopes     text[] not null check (scopes <@ '{send,read,operator}'),
  test       boolean not null default false,
  created_at timestamptz not null default clock_timestamp(),
  revoked_at timestamptz
);

-- A stream is known for ever; its counter is apart, so that a lost counter is
-- seen as lost and never starts again at 0.
create table stream (
  id         bigint generated always as identity primary key,
  tenant     int not null references tenant,
  name       text not null,
  created_at timestamptz not null default clock_timestamp(),
  unique (tenant, name)
);

create table counter (
  stream bigint primary key,
  last   bigint not null check (last >= 0), -- the last number given out
  floor  bigint not null default 0          -- the last number that retention has dropped
) with (fillfactor = 50);

-- The submission number in a position. 51 bits.
create sequence position as bigint minvalue 1 maxvalue 2251799813685247 cache 1;

-- The one index with random keys.
create table identity (
  key        uuid primary key,
  submission bigint not null,
  lane       smallint not null,
  count      smallint not null,
  print      bytea not null check (octet_length(print) = 32)
);
create index identity_submission on identity using brin (submission);

-- lane is n >> 57. cursor: every message at or below it has an attempt or a
-- waiting row. floor: everything at or below it was dropped by retention.
create table lane (
  code   smallint primary key,
  cursor bigint not null,
  floor  bigint not null
) with (fillfactor = 50);
insert into lane select c, c::bigint << 57, c::bigint << 57 from unnest('{5,6,7,9,10,11}'::int[]) c;

create table message (
  n           bigint not null primary key,
  stream      bigint not null,
  seq         bigint not null,
  tenant      int not null,
  test        boolean not null,
  id          bytea not null, -- the first 24 bytes of its id
  recipient   text not null,
  accepted_at timestamptz not null,
  expires_at  timestamptz not null,
  trace       text
) partition by range (n);

create table content (
  n    bigint not null primary key, -- of the submission's first message
  body bytea not null
) partition by range (n);

create table attempt (
  n      bigint not null,
  no     smallint not null check (no > 0),
  kind   smallint not null check (kind between 1 and 5), -- send cancel expire supersede hold
  worker int not null,
  token  bigint not null,
  at     timestamptz not null,
  note   text,
  primary key (n, no)
) partition by range (n);
create index attempt_at on attempt (at);

create table outcome (
  n         bigint not null,
  no        smallint not null,
  kind      smallint not null check (kind between 1 and 5), -- sent deferred rejected unknown returned
  at        timestamptz not null,
  provider  text,
  code      text,
  reply     text,
  reference text,
  primary key (n, no)
) partition by range (n);

-- What a person, or a policy, made of a doubt: one row for each.
create table decision (
  n      bigint not null,
  no     smallint not null,
  kind   text not null check (kind in ('sent', 'resend', 'drop')),
  by     text not null,
  reason text not null,
  at     timestamptz not null default clock_timestamp(),
  primary key (n, no)
);

-- The leave to make attempt no, from due on. The row goes only in the
-- transaction that makes that attempt.
create table waiting (
  n    bigint primary key,
  no   smallint not null,
  lane smallint not null,
  due  timestamptz not null
);
create index waiting_due on waiting (lane, due);

create table doubt (
  n     bigint not null,
  no    smallint not null,
  cause text not null check (cause in ('unknown', 'silent')),
  since timestamptz not null default clock_timestamp(),
  primary key (n, no)
);
create index doubt_since on doubt (since, n);

-- Attempts that a process had open when it went: looked at again and again
-- until they have an outcome or become doubts.
create table silent (
  n      bigint not null,
  no     smallint not null,
  worker int not null,
  at     timestamptz not null,
  primary key (n, no)
);

-- Its one row is the lock of whoever sweeps for doubts.
create table sweep (single boolean primary key default true check (single));
insert into sweep default values;

-- Records that are no message of ours.
create table parked (
  id     bigint generated always as identity primary key,
  source text not null,
  raw    bytea not null,
  reason text not null,
  at     timestamptz not null default clock_timestamp()
);

-- Every process start has a row, and its heartbeat.
create table process (
  id         int generated always as identity primary key,
  name       text not null,
  started_at timestamptz not null default clock_timestamp(),
  beat_at    timestamptz not null default clock_timestamp(),
  give_up    interval not null default '0',
  open_n     bigint[] not null default '{}',
  open_no    smallint[] not null default '{}',
  accepted   bigint[] not null default '{}', -- by lane code, since the start
  attempted  bigint[] not null default '{}',
  -- see sweep_doubts; the next heartbeat sets these back
  given_up_at timestamptz,
  barrier     xid8,
  swept       boolean not null default false
) with (fillfactor = 50);

-- When the ledger could be written to: pulse is the last time it was, outage
-- the holes between two pulses.
create table pulse (single boolean primary key default true check (single), at timestamptz not null);
insert into pulse (at) values (clock_timestamp());
create table outage (since timestamptz primary key, until timestamptz not null);

-- Positions are kept in eras of 2^23 submissions, each with its partitions.
-- Time moves on to the next one early, so that an era is never too long.
create table era (
  no       int primary key,
  began_at timestamptz,                  -- when the first submission fell into it
  content  boolean not null default true -- its content is still there
);

-- +goose StatementBegin
create function add_era(w int) returns void language plpgsql as $$
declare
  l    int;
  t    text;
  lo   bigint;
  hi   bigint;
  part text;
begin
  insert into era (no) values (w);
  foreach l in array '{5,6,7,9,10,11}'::int[] loop
    lo := (l::bigint << 57) | ((w::bigint << 23) << 6);
    hi := (l::bigint << 57) | (((w::bigint + 1) << 23) << 6);
    foreach t in array '{message,content,attempt,outcome}'::text[] loop
      part := format('%s_%s_%s', t, l, w);
      execute format('create table %I partition of %I for values from (%s) to (%s)', part, t, lo, hi);
    end loop;
    execute format('create unique index %I on %I (stream, seq)', format('message_%s_%s_number', l, w), format('message_%s_%s', l, w));
  end loop;
end $$;
-- +goose StatementEnd

select add_era(0);
select add_era(1);

-- The rule against double sends, whoever inserts: attempt k+1 needs an outcome
-- of k that says "not taken", or the decision to resend.
-- +goose StatementBegin
create function attempt_needs_leave() returns trigger language plpgsql as $$
begin
  if exists (select from outcome o where o.n = new.n and o.no = new.no - 1 and o.kind in (2, 5))
  or exists (select from decision d where d.n = new.n and d.no = new.no - 1 and d.kind = 'resend') then
    return new;
  end if;
  raise exception 'attempt % of % has no leave', new.no, new.n
    using errcode = 'SP002', hint = 'the attempt before it needs an outcome that says "not taken", or a decision to resend';
end $$;
-- +goose StatementEnd
create trigger attempt_needs_leave before insert on attempt
  for each row when (new.no > 1) execute function attempt_needs_leave();

-- +goose Down
drop trigger attempt_needs_leave on attempt;
drop function attempt_needs_leave, add_era;
drop table era, outage, pulse, process, parked, sweep, silent, doubt, waiting, decision, outcome, attempt, content, message, lane, identity, counter, stream, api_key, tenant;
drop sequence position;
