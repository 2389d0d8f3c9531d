-- Numbers that are nobody's: what only PostgreSQL had before it was rolled back. A list
-- that came upon one of them, halving, took all that is above it for newer than where
-- it goes on, and left it out.

-- +goose Up
-- +goose StatementBegin
create or replace function number_before(stream_ bigint, submission bigint) returns bigint language plpgsql stable as $$
declare
  lo  bigint;
  hi  bigint;
  mid bigint;
  seq_ bigint;
  at  bigint;
begin
  select c.floor, c.last into lo, hi from counter c where c.stream = stream_;
  while lo < hi loop
    mid := (lo + hi + 1) / 2;
    select m.seq, (m.n >> 6) & 2251799813685247 into seq_, at from message m
    where m.stream = stream_ and m.seq > lo and m.seq <= mid order by m.seq desc limit 1;
    if at >= submission then
      hi := seq_ - 1;
    else -- or all of them are nobody's
      lo := mid;
    end if;
  end loop;
  return lo;
end $$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
create or replace function number_before(stream_ bigint, submission bigint) returns bigint language plpgsql stable as $$
declare
  lo  bigint;
  hi  bigint;
  mid bigint;
  at  bigint;
begin
  select c.floor, c.last into lo, hi from counter c where c.stream = stream_;
  while lo < hi loop
    mid := (lo + hi + 1) / 2;
    select (m.n >> 6) & 2251799813685247 into at from message m where m.stream = stream_ and m.seq = mid;
    if at is null or at >= submission then
      hi := mid - 1;
    else
      lo := mid;
    end if;
  end loop;
  return lo;
end $$;
-- +goose StatementEnd
