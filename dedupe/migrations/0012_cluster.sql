-- Which Kafka cluster each lane uses, and evacuations, which move lanes
-- (docs/decisions/0015-evacuate.md).

-- +goose Up

-- A lane without a row uses the cluster "main".
create table placement (
  lane      smallint primary key,
  cluster   text not null,
  at        timestamptz not null default clock_timestamp(),
  by        text not null,
  automatic boolean not null,
  mark      bigint not null, -- the lane's last position then: up to it is the backlog
  rate      int              -- messages of the backlog a second; null: no bound
);

create table evacuation (
  id       bigint generated always as identity primary key,
  cluster  text not null,
  by       text not null,
  at       timestamptz not null default clock_timestamp(),
  ended_at timestamptz
);

-- How each process sees each cluster. Old rows are of processes that are gone.
create table sighting (
  process text not null,
  cluster text not null,
  away    boolean not null,
  at      timestamptz not null default clock_timestamp(),
  primary key (process, cluster)
);

-- lane_left counts, up to most, what of a lane up to mark nobody has claimed yet.
-- +goose StatementBegin
create function lane_left(lane_ smallint, mark bigint, most bigint) returns bigint
language sql stable
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
  select count(*) from (
    select from message m
    where m.n > (select l.cursor from lane l where l.code = lane_) and m.n <= mark
      and not exists (select from attempt a where a.n = m.n and a.no = 1)
      and not exists (select from waiting w where w.n = m.n)
    limit most) x
$$;
-- +goose StatementEnd

-- +goose Down
drop function lane_left;
drop table sighting, evacuation, placement;
