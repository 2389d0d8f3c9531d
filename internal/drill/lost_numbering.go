package drill

import (
	"context"
	"fmt"
	"time"
)

var lostNumbering = Drill{
	Name: "lost-numbering",
	Outage: `Zendesk Sell mail sync, 2024-02-29: an upgrade dropped the key that numbers each mail; nothing
could be stored for 8 h 10 min, of which 4 h 44 min were draining.`,
	About: `The sequence of positions, the unique index on (stream, number) of the current partition and a
stream's counter are dropped, in turn and together. Accepting never stops, each loss is repaired within 60 s by the
program itself, and the numbers of each stream are 1..N.`,
	Run: func(ctx context.Context, s *Stage) error {
		var index string
		index, err := s.Text(ctx, `select indexname::text from pg_indexes where indexname ~ '^message_5_[0-9]+_number$' order by indexname limit 1`)
		if err != nil {
			return err
		}
		losses := []loss{
			{"position", `drop sequence position cascade`, `select 'x' from pg_class where relkind = 'S' and relname = 'position'`},
			{"unique_index", `drop index ` + index, `select 'x' from pg_indexes where indexname ~ '^message_5_[0-9]+_number$' and indexdef ilike 'create unique%' order by indexname limit 1`},
			{"counter", `delete from counter where stream = (select min(id) from stream)`, `select 'x' from counter where stream = (select min(id) from stream)`},
		}
		losses[1].there = fmt.Sprintf(`select 'x' from pg_indexes where indexname = '%s'`, index)
		repaired := map[string]any{}
		s.Evidence("repaired_after_s", repaired)
		bit := false
		for i, together := range [][]loss{losses[:1], losses[1:2], losses[2:], losses} {
			if err := s.At(ctx, 0.15+0.2*float64(i)); err != nil {
				return err
			}
			var lost []loss
			at := time.Now()
			for _, l := range together {
				s.Harm("lost: %s", l.name)
				dctx, cancel := context.WithTimeout(ctx, 10*time.Second)
				err := s.Exec(dctx, l.sql)
				cancel()
				if err != nil {
					s.Event("%s could not be taken away: %v", l.name, err)
					continue
				}
				lost, bit = append(lost, l), true
			}
			for _, l := range lost {
				name := fmt.Sprintf("%d-%s", i+1, l.name)
				ok := s.Until(ctx, time.Until(at.Add(s.Span(0.15, 20*time.Second))), func() bool {
					text, err := s.Text(ctx, l.there)
					return err == nil && text != ""
				})
				if !ok {
					if ctx.Err() != nil {
						return ctx.Err()
					}
					repaired[name] = nil
					s.Broke("%s was not repaired by itself", name)
					continue
				}
				repaired[name] = time.Since(at).Seconds()
			}
			s.Healed("repaired: %v", repaired)
			if unrepaired(repaired) {
				// Nothing more can be learned, and nothing more gets through.
				s.Event("the program doesn't repair it; the drill ends here")
				s.Bit(bit)
				s.load.end()
				return nil
			}
		}
		s.Bit(bit)
		if n := s.load.refused.count(); n > 0 {
			s.Broke("requests were answered 503 in %d seconds", n)
		}
		return s.At(ctx, 1)
	},
}

// loss is one thing that numbers, how it goes, and the query that finds it.
type loss struct{ name, sql, there string }

func unrepaired(m map[string]any) bool {
	for _, v := range m {
		if v == nil {
			return true
		}
	}
	return false
}
