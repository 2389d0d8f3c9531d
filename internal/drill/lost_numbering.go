package drill

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

var lostNumbering = Drill{
	Name: "lost-numbering",
	Outage: `Zendesk Sell mail sync, 2024-02-29: an upgrade dropped the key that numbers each mail; nothing
could be stored for 8 h 10 min, of which 4 h 44 min were draining.`,
	About: `The sequence of positions, the unique index on (stream, number) of the current partition and a
stream's counter are dropped, in turn and together, the last time over and over for a tenth of the load. Accepting never
stops, each loss is told by an incident and named in a log within 10 s, and repaired by the program itself within 15 % of the load (30 s by default), the backlog
that it left is drained at no less than 80 % of the drill's top rate while new mail flows, and the numbers of
each stream are 1..N.`,
	// The relay here takes as many connections as come. What a backlog of mail goes at
	// best is to be the system's limit, not that of a relay which takes 50 of a client.
	Shape: Shape{Keyless: true, Calm: true, Reachable: true, Prepare: func(_ context.Context, s *Stage) error {
		s.env = append(s.env, "STORMPOST_SMTP_CONNECTIONS=64")
		return nil
	}},
	Run: func(ctx context.Context, s *Stage) error {
		if err := s.At(ctx, 0.15); err != nil { // by then there are streams
			return err
		}
		index, err := s.Text(ctx, `select indexname::text from pg_indexes where indexname ~ '^message_5_[0-9]+_number$' order by indexname limit 1`)
		if err != nil {
			return err
		}
		stream, err := s.Text(ctx, `select min(id)::text from stream`)
		if err != nil {
			return err
		}
		losses := []loss{
			{"position", "sequence position is missing", `drop sequence position cascade`, `select 'x' from pg_class where relkind = 'S' and relname = 'position'`},
			{"unique_index", "unique index (stream, seq) of " + strings.TrimSuffix(index, "_number") + " is missing", `drop index ` + index, `select 'x' from pg_indexes where indexname ~ '^message_5_[0-9]+_number$' and indexdef ilike 'create unique%' order by indexname limit 1`},
			{"counter", "counter of stream " + stream + " is ", `delete from counter where stream = ` + stream, `select 'x' from counter where stream = ` + stream},
		}
		losses[1].there = fmt.Sprintf(`select 'x' from pg_indexes where indexname = '%s'`, index)
		repaired := map[string]any{}
		s.Evidence("repaired_after_s", repaired)
		bit := true // each loss, and all of them together
		for i, together := range [][]loss{losses[:1], losses[1:2], losses[2:], losses} {
			if err := s.At(ctx, 0.15+0.2*float64(i)); err != nil {
				return err
			}
			var lost []loss
			for _, l := range together {
				h := s.Harm([]string{numbering}, "lost, %d: %s", i+1, l.name)
				h.names = l.fault
				if err := take(ctx, s, l); err != nil {
					s.Event("%s could not be taken away: %v", l.name, err)
					bit = false
					continue
				}
				h.Bites()
				lost = append(lost, l)
			}
			if len(together) == len(losses) { // so a backlog comes about
				end := time.Now().Add(s.Span(0.1, 0))
				for time.Now().Before(end) && waitUntil(ctx, time.Now().Add(50*time.Millisecond)) {
					for _, l := range losses {
						_ = take(ctx, s, l) // what is gone already can't be
					}
				}
			}
			at := time.Now()
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
		if err := s.At(ctx, 1); err != nil {
			return err
		}
		// While new mail flows.
		if !s.Until(ctx, s.Span(1, time.Minute), func() bool { return s.tick().Backlog <= 2*s.opt.Rate }) && ctx.Err() == nil {
			s.Broke("the backlog was not drained")
		}
		judged := s.drain()
		// Journaling for 10 s and more leaves a backlog, or else nothing was lost.
		s.Bit(bit && (judged || s.Span(0.1, 0) < 10*time.Second))
		return ctx.Err()
	},
}

func take(ctx context.Context, s *Stage, l loss) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return s.Exec(ctx, l.sql)
}

// drain judges how fast the last backlog was drained, if it was one to speak of:
// 5 s of the load or more.
func (s *Stage) drain() (judged bool) {
	s.mu.Lock()
	ticks, from := s.result.Timeline, s.healed.Sub(s.start).Seconds()
	s.mu.Unlock()
	top, mean, most := drainRates(ticks, from, s.opt.Rate)
	s.Evidence("backlog", most)
	if most < 5*s.opt.Rate {
		return false
	}
	s.Evidence("drained_per_s", mean)
	s.Evidence("top_rate_per_s", top)
	if mean < 0.8*top {
		s.Broke("the backlog was drained at %.0f/s, under 80 %% of the %.0f/s that it goes at best", mean, top)
	}
	return true
}

// drainRates says how many messages a second were sent at best, in 5 s of ticks,
// and on average from when the backlog was largest until it was gone: no more
// than 2 s of the load at rate. It is from then on that the largest backlog counts.
func drainRates(ticks []Tick, from float64, rate int) (top, mean float64, most int) {
	ticks = slices.DeleteFunc(slices.Clone(ticks), func(t Tick) bool { return t.Event != "" })
	start, end, first := -1, -1, 0
	for i, t := range ticks {
		for t.T-ticks[first].T > 5.5 {
			first++
		}
		if took := t.T - ticks[first].T; took >= 4.5 {
			top = max(top, float64(t.Sent-ticks[first].Sent)/took)
		}
		switch {
		case t.T < from:
		case start < 0 || t.Backlog > most:
			start, most, end = i, t.Backlog, -1
		case end < 0 && t.Backlog <= 2*rate:
			end = i
		}
	}
	if start < 0 {
		return top, 0, 0
	}
	if end < 0 {
		end = len(ticks) - 1
	}
	if took := ticks[end].T - ticks[start].T; took > 0 {
		mean = float64(ticks[end].Sent-ticks[start].Sent) / took
	}
	return top, mean, most
}

// loss is one thing that numbers, how the fault is named, how it goes, and the query
// that finds it.
type loss struct{ name, fault, sql, there string }

func unrepaired(m map[string]any) bool {
	for _, v := range m {
		if v == nil {
			return true
		}
	}
	return false
}
