package dedupe

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	// mostReplays bounds how many replays are not through at once.
	mostReplays = 8
	// replaySample is how many messages of each cause a look shows.
	replaySample = 3
	// lookBudget is after how long a look answers with what it has.
	lookBudget = 3 * time.Second
	// lookSpan is how many submissions one statement of a look judges.
	lookSpan = 1 << 13
)

// replayArgs are a filter's columns, in the order of replayFilter.
func replayArgs(f message.ReplayFilter) []any {
	text := func(s string) any {
		if s == "" {
			return nil
		}
		return s
	}
	at := func(t time.Time) any {
		if t.IsZero() {
			return nil
		}
		return t
	}
	args := []any{nil, text(string(f.State)), text(f.Provider), nil, text(f.Stream), at(f.Since), at(f.Until), nil}
	if f.Lane != (message.Lane{}) {
		args[0] = int16(f.Lane.Code())
	}
	if f.Tenant != 0 {
		args[3] = f.Tenant
	}
	if f.Tag != "" {
		args[7] = `"` + f.Tag + `"` // tags need no escapes
	}
	return args
}

const replayFilter = `lane, state, provider, tenant, stream, since, until, tag`

// lanesOf is the lanes of a filter, most urgent first.
func lanesOf(f message.ReplayFilter) []message.Lane {
	if f.Lane != (message.Lane{}) {
		return []message.Lane{f.Lane}
	}
	return message.Lanes()
}

func startOf(l message.Lane) message.Position { return message.Position(l.Code() << 57) }

// window is the next stretch of a lane to look at: behind pos, over holes that
// eras leave, at most span submissions wide and not beyond top. ok is false at
// the lane's end.
func (l *Ledger) window(ctx context.Context, pos message.Position, top, span int64) (hi int64, ok bool, err error) {
	end := pos.Lane().Code()<<57 | (top+1)<<6 - 1
	var first int64
	err = l.pool.QueryRow(ctx, `select n from message where n > $1 and n <= $2 order by n limit 1`, int64(pos), end).Scan(&first)
	if noRows(err) {
		return 0, false, nil
	}
	return min(first|63+(span-1)<<6, end), true, err
}

// next is where to go on behind the end of a lane; ok is false behind the last.
func next(f message.ReplayFilter, lane message.Lane) (pos message.Position, ok bool) {
	lanes := lanesOf(f)
	for i, l := range lanes[:len(lanes)-1] {
		if l == lane {
			return startOf(lanes[i+1]), true
		}
	}
	return 0, false
}

// LookReplay implements httpapi.Ledger. A cursor is the last submission of
// all, and the position to go on behind.
func (l *Ledger) LookReplay(ctx context.Context, f message.ReplayFilter, cursor string) (*message.ReplayLook, error) {
	if err := l.stands("replay"); err != nil { // what failed may have been sent since
		return nil, err
	}
	done, err := l.read(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	until := time.Now().Add(lookBudget)
	ctx, cancel := context.WithTimeout(ctx, lookBudget+l.cfg.Deadline)
	defer cancel()
	if err := tenantKnown(ctx, l.pool, f.Tenant); err != nil {
		return nil, replayError("replay", err)
	}
	pos, top := startOf(lanesOf(f)[0]), int64(0)
	if cursor != "" {
		t, p, ok := strings.Cut(cursor, "-")
		u, err1 := strconv.ParseInt(t, 36, 64)
		n, err2 := strconv.ParseInt(p, 36, 64)
		pos, top = message.Position(n), u
		if !ok || err1 != nil || err2 != nil || u < 0 || u >= message.MaxSubmission || !laneIn(f, pos.Lane()) {
			return nil, message.FieldErrors{{Field: "cursor", Problem: "is not one of ours, or of another filter"}}
		}
	} else if err := l.pool.QueryRow(ctx, `select last_value from position`).Scan(&top); err != nil {
		return nil, unavailable("replay", err)
	}
	look := &message.ReplayLook{Counts: make(map[string]int64), Samples: make(map[string][]message.View)}
	samples := make(map[string][]int64)
	for {
		hi, ok, err := l.window(ctx, pos, top, lookSpan)
		if err != nil {
			return nil, unavailable("replay", err)
		}
		if !ok {
			if pos, ok = next(f, pos.Lane()); !ok {
				break
			}
			continue
		}
		if err := l.lookAt(ctx, f, pos, hi, look.Counts, samples); err != nil {
			return nil, unavailable("replay", err)
		}
		pos = message.Position(hi)
		if time.Now().After(until) {
			look.Next = strconv.FormatInt(top, 36) + "-" + strconv.FormatInt(int64(pos), 36)
			break
		}
	}
	for cause, ns := range samples {
		views, err := l.views(ctx, ns)
		if err != nil {
			return nil, err
		}
		for _, n := range ns {
			if v := views[message.Position(n)]; v != nil {
				look.Samples[cause] = append(look.Samples[cause], *v)
			}
		}
	}
	return look, nil
}

// tenantKnown fails unless a filter's tenant is none, or exists.
func tenantKnown(ctx context.Context, q interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}, tenant int32) error {
	var known bool
	if err := q.QueryRow(ctx, `select $1::int = 0 or exists (select from tenant where id = $1)`, tenant).Scan(&known); err != nil || known {
		return err
	}
	return message.FieldErrors{{Field: "filter.tenant", Problem: "there is no such tenant"}}
}

func laneIn(f message.ReplayFilter, lane message.Lane) bool {
	for _, l := range lanesOf(f) {
		if l == lane {
			return true
		}
	}
	return false
}

func (l *Ledger) lookAt(ctx context.Context, f message.ReplayFilter, pos message.Position, hi int64, counts map[string]int64, samples map[string][]int64) error {
	rows, err := l.pool.Query(ctx, `
		select x.cause, x.count, x.sample from replay_look(jsonb_populate_record(null::replay, jsonb_build_object(
			'lane', $1::smallint, 'state', $2::text, 'provider', $3::text, 'tenant', $4::int, 'stream', $5::text, 'since', $6::timestamptz,
			'until', $7::timestamptz, 'tag', $8::text)), $9, $10, $11) x`,
		append(replayArgs(f), int64(pos), hi, replaySample)...)
	if err != nil {
		return err
	}
	var cause string
	var n int64
	var some []int64
	_, err = pgx.ForEachRow(rows, []any{&cause, &n, &some}, func() error {
		counts[cause] += n
		has := samples[cause]
		samples[cause] = append(has, some[:min(len(some), replaySample-len(has))]...)
		return nil
	})
	return err
}

// AddReplay implements httpapi.Ledger. Filters may overlap unless they differ
// in a field that has one value for each message; by tags nobody can tell.
func (l *Ledger) AddReplay(ctx context.Context, r message.Replay) (message.Replay, error) {
	if err := l.stands("replay"); err != nil {
		return message.Replay{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	args := append(replayArgs(r.Filter), r.Rate, bounded(r.Reason, 1000), r.By, int64(startOf(lanesOf(r.Filter)[0])))
	var made message.Replay
	err := pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `lock table replay in share row exclusive mode`); err != nil {
			return err
		}
		if err := tenantKnown(ctx, tx, r.Filter.Tenant); err != nil {
			return err
		}
		var open, with int64
		if err := tx.QueryRow(ctx, `
			select count(*), coalesce(min(r.id) filter (where
				coalesce(r.lane = $1, true) and coalesce(r.state = $2, true) and coalesce(r.provider = $3, true) and coalesce(r.tenant = $4, true)
				and coalesce(r.stream = $5, true) and coalesce(r.until > $6, true) and coalesce(r.since < $7, true)), 0)
			from replay r where r.status in ('active', 'paused')`, args[:7]...).Scan(&open, &with); err != nil {
			return err
		}
		if with != 0 || open >= mostReplays {
			return &message.ReplayOverlap{ID: with}
		}
		rows, err := tx.Query(ctx, `
			insert into replay as r (`+replayFilter+`, rate, reason, asked_by, pos, top)
			select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, p.last_value from position p
			returning `+replayColumns, args...)
		if err != nil {
			return err
		}
		made, err = pgx.CollectExactlyOneRow(rows, scanReplay)
		return err
	})
	if err != nil {
		return made, replayError("replay", err)
	}
	l.log.WarnContext(ctx, "replay begins", "replay", made.ID, "by", made.By)
	return made, nil
}

// ReplayMessage implements httpapi.Ledger.
func (l *Ledger) ReplayMessage(ctx context.Context, id message.ID, attempt int, by, reason string) (message.Replay, error) {
	if err := l.stands("replay"); err != nil {
		return message.Replay{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	n, err := l.findEntered(ctx, id)
	if err != nil {
		return message.Replay{}, err
	}
	var made int64
	var cause *string
	if err := l.pool.QueryRow(ctx, `select id, cause from replay_named($1, $2, $3, $4)`, int64(n), int16(attempt), by, bounded(reason, 1000)).
		Scan(&made, &cause); err != nil {
		return message.Replay{}, unavailable("replay", err)
	}
	if cause != nil {
		return message.Replay{}, &message.NotReplayable{Cause: *cause}
	}
	l.log.WarnContext(ctx, "a message is sent again, by name", "replay", made, "by", by)
	return l.Replay(ctx, made)
}

const replayColumns = `r.id, coalesce(r.n, 0), r.id_named, coalesce(r.lane, 0), coalesce(r.state, ''), coalesce(r.provider, ''), coalesce(r.tenant, 0),
	coalesce(r.stream, ''), r.since, r.until, coalesce(r.tag, ''), r.rate, r.reason, r.asked_by, r.at, r.status, coalesce(r.stopped_by, ''), r.ended_at,
	r.moved_at, r.total, r.given, r.left_out, r.counted, r.pos, r.top, r.given - r.pace_from,
	coalesce(extract(epoch from clock_timestamp() - r.pace_since), 0)::float8`

func scanReplay(row pgx.CollectableRow) (r message.Replay, err error) {
	var lane int16
	var named, pos, paced int64
	var since, until, ended *time.Time
	var tag string
	var id, left []byte
	var took float64
	f := &r.Filter
	if err = row.Scan(&r.ID, &named, &id, &lane, &f.State, &f.Provider, &f.Tenant, &f.Stream, &since, &until, &tag, &r.Rate, &r.Reason, &r.By, &r.At,
		&r.Status, &r.StoppedBy, &ended, &r.MovedAt, &r.Total, &r.Given, &left, &r.Counted, &pos, &r.Top, &paced, &took); err != nil {
		return r, err
	}
	r.Pos = message.Position(pos)
	if id != nil {
		copy(r.Named[:24], id)
		r.Named = r.Named.Message(message.Position(named).Index())
	}
	if lane != 0 {
		f.Lane = message.LaneOf(int64(lane))
	}
	f.Tag = strings.Trim(tag, `"`)
	for to, from := range map[*time.Time]*time.Time{&f.Since: since, &f.Until: until, &r.EndedAt: ended} {
		if from != nil {
			*to = *from
		}
	}
	r.ETA = -1
	if r.Status == "active" {
		r.Status = message.ReplayCounting
		if r.Counted {
			r.Status = message.ReplayRunning
			rate := float64(r.Rate)
			if took >= 2 { // before, nobody can tell how it goes
				rate = float64(paced) / took
			}
			if left := float64(max(0, r.Total-r.Given)); rate > 0 {
				r.ETA = time.Duration(min(left/rate, 1e9) * float64(time.Second))
			}
		}
	}
	return r, json.Unmarshal(left, &r.LeftOut)
}

// Replay implements httpapi.Ledger.
func (l *Ledger) Replay(ctx context.Context, id int64) (message.Replay, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	rows, err := l.pool.Query(ctx, `select `+replayColumns+` from replay r where r.id = $1`, id)
	if err != nil {
		return message.Replay{}, unavailable("replay", err)
	}
	r, err := pgx.CollectExactlyOneRow(rows, scanReplay)
	if noRows(err) {
		return r, fmt.Errorf("replay: %w", message.ErrNotFound)
	}
	return r, replayError("replay", err)
}

// Replays implements httpapi.Ledger.
func (l *Ledger) Replays(ctx context.Context, cursor string, limit int) (page message.Page[message.Replay], err error) {
	below := int64(1<<63 - 1)
	if cursor != "" {
		if below, err = strconv.ParseInt(cursor, 10, 64); err != nil {
			return page, message.FieldErrors{{Field: "cursor", Problem: "is not one of ours"}}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	rows, err := l.pool.Query(ctx, `select `+replayColumns+` from replay r where r.id < $1 order by r.id desc limit $2`, below, limit+1)
	if err != nil {
		return page, unavailable("replays", err)
	}
	if page.Items, err = pgx.CollectRows(rows, scanReplay); err != nil {
		return page, unavailable("replays", err)
	}
	if len(page.Items) > limit {
		page.Items = page.Items[:limit]
		page.Next = strconv.FormatInt(page.Items[limit-1].ID, 10)
	}
	return page, nil
}

// TurnReplay implements httpapi.Ledger.
func (l *Ledger) TurnReplay(ctx context.Context, id int64, to message.ReplayStatus, by string) (message.Replay, error) {
	status := string(to)
	if to == message.ReplayRunning {
		status = "active"
	}
	sctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	rows, err := l.pool.Query(sctx, `
		update replay r set status = $2, worker = null, leased_until = '-infinity', pace_since = null, moved_at = clock_timestamp(),
			stopped_by = case when $2 = 'active' then r.stopped_by else $3 end,
			ended_at = case when $2 = 'canceled' then clock_timestamp() end
		where r.id = $1 and r.status in ('active', 'paused') and r.status <> $2 returning `+replayColumns, id, status, by)
	if err != nil {
		return message.Replay{}, unavailable("replay", err)
	}
	r, err := pgx.CollectExactlyOneRow(rows, scanReplay)
	if noRows(err) { // it is so already, or has ended
		if r, err = l.Replay(ctx, id); err == nil && !r.EndedAt.IsZero() && r.Status != to {
			err = fmt.Errorf("replay: %w", message.ErrReplayEnded)
		}
		return r, err
	}
	if err == nil {
		l.log.WarnContext(ctx, "replay "+status, "replay", id, "by", by)
	}
	return r, replayError("replay", err)
}

// replayError keeps what is about the request apart from what is about the store.
func replayError(op string, err error) error {
	switch err.(type) {
	case nil:
		return nil
	case message.FieldErrors, *message.ReplayOverlap:
		return err
	}
	return unavailable(op, err)
}
