-- What the guard has repaired, so that every process tells of it: a loss may come
-- and go between two of its looks.

-- +goose Up
create table repair (
  id     bigint generated always as identity primary key,
  at     timestamptz not null default clock_timestamp(),
  name   text not null,
  detail text not null
);

-- +goose Down
drop table repair;
