package dedupe

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/stormpost/stormpost/internal/message"
)

// The numbering guard. What it looks at, and how often:
//
//   - In each check: tables, keys, the partitions' indexes of (stream, seq), both
//     sequences and their values, functions; the streams that some process could
//     not number (table suspect).
//   - In four checks: that every stream has its counter, at or above its mark.
//   - In turn, so many streams that a check makes about 18,000 index probes (1,000
//     streams with three eras): that the counter isn't behind the messages. A
//     counter that is behind and used fails to number, and so is a suspect.
//
// Messages are asked for before counters and sequences, or in one snapshot with
// them: what is given out later can't look like a lag.

const (
	submissionMask = 1<<51 - 1
	// positionJump is how far position is set beyond all that is known of. Numbers
	// that were given out in vain are nowhere, and a lane's cursor may have
	// passed them already: a message there would not be fed.
	positionJump = 1 << 20

	probesPerCheck = 18_000
	leastSlice     = 10_000 // streams whose counters are looked for in a check, or a quarter of all
	mostFaults     = 1000   // of counters, in a check
	mostSuspects   = 1000
)

// guardState is where the guard's rounds are.
type guardState struct {
	mu       sync.Mutex // held for the whole of a check
	counters int64      // every stream up to here has been looked at for its counter
	lags     int64      // and for a lag

	smu      sync.Mutex
	suspects map[int64]struct{} // streams that this process could not number
}

// suspect has the next check look at a stream.
func (g *guardState) suspect(stream int64) {
	g.smu.Lock()
	defer g.smu.Unlock()
	if g.suspects == nil {
		g.suspects = make(map[int64]struct{})
	}
	if len(g.suspects) < mostSuspects {
		g.suspects[stream] = struct{}{}
	}
}

// suspected takes the suspects.
func (g *guardState) suspected() []int64 {
	g.smu.Lock()
	defer g.smu.Unlock()
	streams := slices.Sorted(maps.Keys(g.suspects))
	clear(g.suspects)
	return streams
}

// key is a unique key that must be there.
type key struct {
	table, cols string // cols as "n,no"
	primary     bool
}

var keys = []key{
	{"stream", "id", true}, {"stream", "tenant,name", false}, {"counter", "stream", true}, {"identity", "key", true},
	{"message", "n", true}, {"content", "n", true}, {"attempt", "n,no", true}, {"outcome", "n,no", true},
	{"waiting", "n", true}, {"decision", "n,no", true}, {"lane", "code", true}, {"era", "no", true},
}

// fault is a Fault and its repair, if there is one. locked repairs run with
// accepting shut out.
type fault struct {
	message.Fault
	fix    func(ctx context.Context, tx pgx.Tx) error
	locked bool
}

// survey is what a check finds. Its fields tell the repair what to go by.
type survey struct {
	faults   []fault
	usable   bool     // the tables are there
	marked   bool     // and the marks, which schemas before 0007_guard have not
	sound    []string // partitions of message with their index of (stream, seq)
	unsound  []string // those without
	top      int64    // the highest submission number known of
	position int64    // position's last value; 0 if it has none
}

func (s *survey) add(name, detail string, locked bool, fix func(context.Context, pgx.Tx) error) {
	s.faults = append(s.faults, fault{message.Fault{Name: name, Detail: detail}, fix, locked})
}

// statements makes a repair of SQL.
func statements(sql string) func(context.Context, pgx.Tx) error {
	return func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, sql)
		return err
	}
}

// querier is a connection or a transaction.
type querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// structure looks at everything but the counters.
func structure(ctx context.Context, q querier) (*survey, error) {
	s := &survey{usable: true, marked: true}
	if err := s.tables(ctx, q); err != nil || !s.usable {
		return s, err
	}
	for _, look := range []func(context.Context, querier) error{s.keys, s.indexes, s.functions, s.sequence, s.eras, s.streamIDs} {
		if err := look(ctx, q); err != nil {
			return s, err
		}
	}
	return s, nil
}

const (
	counterTable = `
	create table counter (stream bigint primary key, last bigint not null check (last >= 0), floor bigint not null default 0) with (fillfactor = 50);
	` + counterTrigger
	counterTrigger = `create trigger keep_mark after insert or update of floor on counter for each row when (new.floor > 0) execute function keep_mark()`
)

func (s *survey) tables(ctx context.Context, q querier) error {
	names := []string{"numbering", "suspect", "counter"}
	for _, k := range keys {
		if !slices.Contains(names, k.table) {
			names = append(names, k.table)
		}
	}
	rows, err := q.Query(ctx, `select t from unnest($1::text[]) t where to_regclass(t) is null`, names)
	if err != nil {
		return err
	}
	missing, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, t := range missing {
		if t == "numbering" || t == "suspect" {
			s.marked = false
		} else {
			s.usable = false
		}
		if t == "counter" {
			s.add("table counter is missing", "", false, statements(counterTable))
			continue
		}
		s.add("table "+t+" is missing", "only a backup, or migrate on an older schema, brings it back", false, nil)
	}
	return nil
}

// soundKey is true of a table $t and its columns $cols if a unique index
// holds them: complete, valid and not deferred.
const soundKey = `exists (
	select from pg_index i where i.indrelid = to_regclass(k.t) and i.indisunique and i.indisvalid and i.indisready
	and i.indimmediate and i.indpred is null and i.indexprs is null
	and string_to_array(k.cols, ',') = (
		select array_agg(a.attname::text order by x.ord) from unnest(i.indkey) with ordinality x(att, ord)
		join pg_attribute a on a.attrelid = i.indrelid and a.attnum = x.att where x.ord <= i.indnkeyatts))`

func (s *survey) keys(ctx context.Context, q querier) error {
	ts, cols := make([]string, len(keys)), make([]string, len(keys))
	for i, k := range keys {
		ts[i], cols[i] = k.table, k.cols
	}
	rows, err := q.Query(ctx, `select k.ord from unnest($1::text[], $2::text[]) with ordinality k(t, cols, ord) where not `+soundKey+` order by 1`, ts, cols)
	if err != nil {
		return err
	}
	lost, err := pgx.CollectRows(rows, pgx.RowTo[int])
	for _, i := range lost {
		k, kind := keys[i-1], "unique"
		if k.primary {
			kind = "primary key"
		}
		s.add(fmt.Sprintf("key (%s) of %s is missing", k.cols, k.table), "", false,
			statements(fmt.Sprintf("alter table %s add %s (%s)", k.table, kind, k.cols)))
	}
	return err
}

func (s *survey) indexes(ctx context.Context, q querier) error {
	rows, err := q.Query(ctx, `
		select k.t, `+soundKey+` from (
			select format('message_%s_%s', l, e.no) as t, 'stream,seq' as cols, e.no, l
			from era e, unnest('{5,6,7,9,10,11}'::int[]) l) k
		where to_regclass(k.t) is not null order by k.no desc, k.l`)
	if err != nil {
		return err
	}
	var part string
	var sound bool
	_, err = pgx.ForEachRow(rows, []any{&part, &sound}, func() error {
		if sound {
			s.sound = append(s.sound, part)
			return nil
		}
		s.unsound = append(s.unsound, part)
		s.add("unique index (stream, seq) of "+part+" is missing", "", false, statements(fmt.Sprintf(
			"drop index if exists %[1]s_number; create unique index %[1]s_number on %[1]s (stream, seq)", part)))
		return nil
	})
	return err
}

func (s *survey) functions(ctx context.Context, q querier) error {
	rows, err := q.Query(ctx, `
		select 'function ' || f from unnest('{accept_batch,add_era,keep_mark}'::text[]) f
		where not exists (select from pg_proc p where p.proname = f and pg_function_is_visible(p.oid)) and ($1 or f <> 'keep_mark')
		union all
		select 'trigger keep_mark of counter' where $1
		and not exists (select from pg_trigger t where t.tgrelid = to_regclass('counter') and t.tgname = 'keep_mark' and t.tgenabled in ('O', 'A'))`, s.marked)
	if err != nil {
		return err
	}
	missing, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, f := range missing {
		if strings.HasPrefix(f, "trigger") {
			s.add(f+" is missing", "", false, statements(`drop trigger if exists keep_mark on counter; `+counterTrigger+`; update counter set floor = floor where floor > 0`))
			continue
		}
		s.add(f+" is missing", "its migration must be run again by hand", false, nil)
	}
	return err
}

// of makes a statement do without the marks where there are none.
func (s *survey) of(sql string) string {
	if s.marked {
		return sql
	}
	return strings.NewReplacer("(select max(n.position) from numbering n)", "0", "s.id, s.mark, c.last", "s.id, 0::bigint as mark, c.last").Replace(sql)
}

// highest is the highest submission number that is known of: of the messages,
// the lanes' cursors and floors, and the guard's own mark.
const highest = `
	select greatest(0, (select max(n.position) from numbering n),
		(select max(greatest((l.cursor >> 6) & $1::bigint, (l.floor >> 6) & $1::bigint)) from lane l),
		(select max((x.n >> 6) & $1::bigint) from lane l cross join lateral (
			select m.n from message m where m.n >= l.code::bigint << 57 and m.n < (l.code::bigint + 1) << 57 order by m.n desc limit 1) x))`

const createPosition = `create sequence position as bigint minvalue 1 maxvalue 2251799813685247 cache 1`

func (s *survey) sequence(ctx context.Context, q querier) error {
	if err := q.QueryRow(ctx, s.of(highest), int64(submissionMask)).Scan(&s.top); err != nil {
		return err
	}
	var there, asMade *bool
	err := q.QueryRow(ctx, `
		select s.seqrelid is not null,
			(seqtypid, seqincrement, seqmin, seqmax, seqcache, seqcycle) = ('bigint'::regtype::oid, 1, 1, 2251799813685247, 1, false),
			coalesce(pg_sequence_last_value(s.seqrelid), 0)
		from (select to_regclass('position')::oid as oid) p left join pg_sequence s on s.seqrelid = p.oid`).Scan(&there, &asMade, &s.position)
	switch {
	case err != nil:
		return err
	case !*there:
		s.add("sequence position is missing", "", true, func(ctx context.Context, tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, createPosition); err != nil {
				return err
			}
			return setPosition(ctx, tx)
		})
		return nil
	case !*asMade:
		s.add("sequence position is not as it was made", "", true, statements(
			`alter sequence position as bigint increment 1 minvalue 1 maxvalue 2251799813685247 cache 1 no cycle`))
	}
	if s.position < s.top {
		was := s.position
		s.add("sequence position is behind", fmt.Sprintf("at %d, but %d was given out", was, s.top), true, func(ctx context.Context, tx pgx.Tx) error {
			if err := setPosition(ctx, tx); err != nil {
				return err
			}
			// What was numbered meanwhile may lie below the cursors.
			_, err := tx.Exec(ctx, `update lane set cursor = least(cursor, greatest(floor, (code::bigint << 57) | (greatest(0, $1::bigint) << 6)))`, was-positionJump)
			return err
		})
	}
	return nil
}

// setPosition sets position beyond all that is known of, and makes sure that
// there are partitions.
func setPosition(ctx context.Context, tx pgx.Tx) error {
	var top int64
	if err := tx.QueryRow(ctx, highest, int64(submissionMask)).Scan(&top); err != nil {
		return err
	}
	next := top
	if top > 0 {
		next += positionJump
	}
	if next == 0 { // nothing was ever given out
		return nil
	}
	if _, err := tx.Exec(ctx, `select setval('position', $1)`, next); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `select add_era($1) where not exists (select from era where no = $1)`, int32(next>>eraBits))
	return err
}

// eras looks for the partitions of the era that position is in, and of later ones.
func (s *survey) eras(ctx context.Context, q querier) error {
	now := int32(max(s.top, s.position) >> eraBits)
	rows, err := q.Query(ctx, `
		select coalesce(format('%s_%s_%s', t, l, e.no), '') from (select 1) x left join era e on e.no >= $1
		left join unnest('{message,content,attempt,outcome}'::text[]) t on e.no is not null and (e.content or t <> 'content')
		left join unnest('{5,6,7,9,10,11}'::int[]) l on e.no is not null
		where e.no is null or to_regclass(format('%s_%s_%s', t, l, e.no)) is null`, now)
	if err != nil {
		return err
	}
	missing, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, part := range missing {
		if strings.HasPrefix(part, "_") || part == "" {
			s.add(fmt.Sprintf("era %d has no partitions", now), "", false, statements(
				fmt.Sprintf("select add_era(%[1]d) where not exists (select from era where no = %[1]d)", now)))
			continue
		}
		s.add("partition "+part+" is missing", "only a backup brings back what was in it", false, nil)
	}
	return err
}

func (s *survey) streamIDs(ctx context.Context, q querier) error {
	var top, last int64
	if err := q.QueryRow(ctx, `select greatest(0, (select max(id) from stream), (select max(stream) from counter))`).Scan(&top); err != nil {
		return err
	}
	var identity, own bool
	if err := q.QueryRow(ctx, `
		select a.attidentity <> '', pg_get_serial_sequence('stream', 'id') is not null,
			coalesce(pg_sequence_last_value(to_regclass(pg_get_serial_sequence('stream', 'id'))), 0)
		from pg_attribute a where a.attrelid = to_regclass('stream') and a.attname = 'id'`).Scan(&identity, &own, &last); err != nil {
		return err
	}
	const set = `select setval(pg_get_serial_sequence('stream', 'id'), greatest(1, (select max(id) from stream), (select max(stream) from counter)))`
	switch {
	case !identity:
		s.add("the identity of stream.id is missing", "", true, statements(`alter table stream alter column id add generated always as identity; `+set))
	case own && last < top:
		s.add("the sequence of stream.id is behind", fmt.Sprintf("at %d, but %d was given out", last, top), true, statements(set))
	}
	return nil
}

// tops is an expression: the highest number of stream s.id in the partitions.
func tops(parts []string) string {
	var b strings.Builder
	b.WriteString("greatest(s.mark")
	for _, p := range parts {
		fmt.Fprintf(&b, ", (select m.seq from %s m where m.stream = s.id order by m.seq desc limit 1)", p)
	}
	return b.String() + ")"
}

// byIndex makes probes of what would be scans to a planner without statistics.
const byIndex = `set local enable_seqscan = off; set local enable_bitmapscan = off; set local enable_sort = off; set local jit = off`

// ofStreams is s: the streams of $1 with what their counters say. offset 0 keeps
// each look-up an index probe, whatever the planner believes.
const ofStreams = `unnest($1::bigint[]) u(id) cross join lateral (
	select s.id, s.mark, c.last from stream s left join lateral (select c.last from counter c where c.stream = u.id offset 0) c on true
	where s.id = u.id offset 0) s`

// lags lists which of the streams have no counter, or one that is behind what
// the sound partitions hold.
func (s *survey) lags(ctx context.Context, q querier, streams []int64) ([]message.Fault, error) {
	rows, err := q.Query(ctx, s.of(`
		select * from (select s.id, s.last, `+tops(s.sound)+` as top from `+ofStreams+` offset 0) x
		where x.last is null or x.last < x.top limit $2`), streams, mostFaults)
	if err != nil {
		return nil, err
	}
	var faults []message.Fault
	var id, top int64
	var last *int64
	_, err = pgx.ForEachRow(rows, []any{&id, &last, &top}, func() error {
		f := message.Fault{Name: fmt.Sprintf("counter of stream %d is missing", id), Detail: fmt.Sprintf("%d was given out", top), Stream: id}
		if last != nil {
			f.Name, f.Detail = fmt.Sprintf("counter of stream %d is behind", id), fmt.Sprintf("at %d, but %d was given out", *last, top)
		}
		faults = append(faults, f)
		last = nil
		return nil
	})
	return faults, err
}
