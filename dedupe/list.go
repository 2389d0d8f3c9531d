package dedupe

import (
	"context"
	"errors"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	// mostExamined bounds how many messages one page of a filtered list looks at.
	mostExamined = 2000
	// mostStreamsListed bounds how many streams are merged into one list.
	mostStreamsListed = 1000
	// orderMask takes the lane out of a position: what is left ascends in order
	// of acceptance over all lanes, and is a list's cursor.
	orderMask = 1<<57 - 1
)

// Messages implements httpapi.Ledger.
func (l *Ledger) Messages(ctx context.Context, f message.Filter) (message.Page[message.View], error) {
	if err := l.stands("messages"); err != nil {
		return message.Page[message.View]{}, err
	}
	page, err := l.messages(ctx, f)
	if err == nil { // by the very connection that looked, perhaps
		err = l.stands("messages")
	}
	return page, err
}

func (l *Ledger) messages(ctx context.Context, f message.Filter) (page message.Page[message.View], err error) {
	below := int64(orderMask)
	if f.Cursor != "" {
		c, err := strconv.ParseInt(f.Cursor, 36, 64)
		if err != nil || c < 0 || c > orderMask {
			return page, message.FieldErrors{{Field: "cursor", Problem: "is not one of ours"}}
		}
		below = c
	}
	if f.Key == nil && f.Submission == (message.ID{}) {
		done, err := l.read(ctx)
		if err != nil {
			return page, err
		}
		defer done()
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	examine := f.Limit + 1
	if f.State != "" || f.Class != 0 || f.Channel != 0 || f.To != "" || f.Tag != "" || !f.Since.IsZero() {
		examine = mostExamined
	}
	ns, err := l.candidates(ctx, f, below, examine)
	if err != nil {
		return page, err
	}
	if len(ns) == 0 && f.Cursor == "" && (f.Key != nil || f.Submission != (message.ID{})) {
		return l.parkedList(ctx, f)
	}
	for chunk := range slices.Chunk(ns, 200) {
		views, err := l.views(ctx, chunk)
		if err != nil {
			return page, err
		}
		for _, n := range chunk {
			v := views[message.Position(n)]
			if v == nil {
				continue
			}
			if !f.Since.IsZero() && v.AcceptedAt.Before(f.Since) {
				if v.EnteredAt.Before(f.Since) {
					return page, nil // the rest is older
				}
				continue // it came late, out of the journal: what is below it may be younger
			}
			ok, err := l.matches(ctx, f, v)
			if err != nil {
				return page, err
			}
			if !ok {
				continue
			}
			if len(page.Items) == f.Limit {
				page.Next = cursorAt(page.Items[f.Limit-1].Position)
				return page, nil
			}
			page.Items = append(page.Items, *v)
		}
	}
	if len(ns) == examine {
		page.Next = cursorAt(message.Position(ns[len(ns)-1]))
	}
	return page, nil
}

func cursorAt(p message.Position) string { return strconv.FormatInt(int64(p)&orderMask, 36) }

// candidates is positions below a cursor, newest first: of one submission, of what is
// held, or of the tenant's streams, merged.
func (l *Ledger) candidates(ctx context.Context, f message.Filter, below int64, most int) ([]int64, error) {
	if f.Key != nil || f.Submission != (message.ID{}) {
		return l.submissionMessages(ctx, f, below)
	}
	if f.State == message.StateHeld { // few, and perhaps far below the newest
		return l.positions(ctx, `select held_newest($1, $2, $3, $4, $5)`, f.Tenant, f.Stream, below, int64(orderMask), most)
	}
	return l.positions(ctx, `
		select m.n from (
			select s.id from stream s where ($1 = 0 or s.tenant = $1) and ($2 = '' or s.name = $2) order by s.id desc limit $5
		) s
		cross join lateral (
			select m.n from message m
			where m.stream = s.id and m.seq <= number_before(s.id, ($3::bigint >> 6) + 1) and m.n & $6 < $3
			order by m.seq desc limit $4
		) m
		order by m.n & $6 desc limit $4`, f.Tenant, f.Stream, below, most, mostStreamsListed, int64(orderMask))
}

func (l *Ledger) positions(ctx context.Context, sql string, args ...any) ([]int64, error) {
	rows, err := l.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, unavailable("list", err)
	}
	ns, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, unavailable("list", err)
	}
	return ns, nil
}

func (l *Ledger) submissionMessages(ctx context.Context, f message.Filter, below int64) ([]int64, error) {
	var lane message.Lane
	var submission int64
	var count int
	var err error
	switch {
	case f.Submission == (message.ID{}):
		lane, submission, count, _, err = l.byKey(ctx, *f.Key)
	case f.Key != nil && *f.Key != f.Submission.KeyHash():
		return nil, nil
	default:
		lane, submission, count, err = l.identity(ctx, f.Submission)
	}
	switch {
	case errors.Is(err, message.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, err
	}
	var ns []int64
	for i := count - 1; i >= 0; i-- {
		p := message.PositionOf(lane, submission, i)
		if int64(p)&orderMask < below {
			ns = append(ns, int64(p))
		}
	}
	return ns, nil
}

func (l *Ledger) matches(ctx context.Context, f message.Filter, v *message.View) (bool, error) {
	switch {
	case f.Tenant != 0 && v.Tenant != f.Tenant,
		f.Stream != "" && v.Stream != f.Stream,
		f.State != "" && v.State != f.State,
		f.Class != 0 && v.Lane.Class != f.Class,
		f.Channel != 0 && v.Lane.Channel != f.Channel,
		f.To != "" && v.Recipient != f.To:
		return false, nil
	case f.Tag == "":
		return true, nil
	}
	body, err := l.Content(ctx, v.Position)
	if err == message.ErrNotFound {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	c, err := message.DecodeContent(body)
	return err == nil && slices.Contains(c.Options().Tags, f.Tag), nil
}
