package drill

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stormpost/stormpost/internal/drill/judge"
	"github.com/stormpost/stormpost/internal/sim"
)

const (
	settleIdle = 45 * time.Second // without a delivery or an answer: nothing more comes
	settleMost = 20 * time.Minute
)

// Run runs a drill to its verdict. An error means that there is none.
func Run(ctx context.Context, d Drill, opt Options) (res *Result, err error) {
	if err := opt.Validate(d); err != nil {
		return nil, err
	}
	opt.Rate = cmp.Or(opt.Rate, d.Shape.Rate, 500)
	s, err := newStage(ctx, d, opt)
	if s != nil {
		defer func() { err = errors.Join(err, s.close()) }()
	}
	if err != nil {
		return nil, err
	}
	wctx, endWatch := context.WithCancel(ctx)
	var watch sync.WaitGroup
	s.start = time.Now()
	watch.Go(func() { s.watch(wctx) })
	defer watch.Wait()
	defer endWatch()
	for range askers {
		watch.Go(func() { s.ask(wctx) })
	}
	if err := s.underLoad(ctx, d); err != nil {
		return nil, err
	}
	s.Event("the load is over; waiting for what is on its way")
	s.settle(ctx)
	if d.Shape.Whole {
		s.drained(ctx)
	}
	s.Event("everyone submits everything again, under the same keys, or none")
	rctx, cancel := context.WithTimeout(ctx, settleMost)
	s.load.again(rctx)
	cancel()
	if n := s.load.unanswered.Load(); n > 0 {
		s.Broke("%d messages got no answer, to the end", n)
	}
	s.settle(ctx)
	s.quiet(ctx)
	_ = s.Wait(ctx, time.Until(s.lastBite().Add(noticeLimit+2*tickEvery)))
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	endWatch()
	watch.Wait()
	return s.result, s.verdict(ctx)
}

// underLoad runs the drill while the load flows, which it outlasts by a little.
func (s *Stage) underLoad(ctx context.Context, d Drill) error {
	dctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var over atomic.Bool
	ran := make(chan error, 1)
	go func() {
		err := d.Run(dctx, s)
		if err != nil {
			cancel()
		}
		over.Store(true)
		ran <- err
	}()
	s.load.run(dctx, s.opt.Messages, s.opt.Rate, func() bool { return !over.Load() })
	if err := <-ran; err != nil {
		return fmt.Errorf("drill %s: %w", d.Name, err)
	}
	return ctx.Err()
}

func (s *Stage) idle() time.Duration { return cmp.Or(s.opt.Settle, settleIdle) }

// settle waits until the providers have as many messages as were accepted, or
// nothing has come for a while.
func (s *Stage) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, settleMost)
	defer cancel()
	for {
		changed := s.sims.Store.Watch()
		if s.sims.Store.Count() >= int(s.load.accepted.Load()) {
			return
		}
		idle := time.NewTimer(s.idle())
		select {
		case <-changed:
			idle.Stop()
		case <-idle.C:
			return
		case <-ctx.Done():
			idle.Stop()
			return
		}
	}
}

// audited is what the API's audit of all lanes says.
type audited struct {
	Total struct {
		Queued, Waiting, Sending, Failed, Lost int
		AddsUp                                 bool `json:"adds_up"`
	}
}

// quiet waits until no message is on its way, so that a double would be seen.
func (s *Stage) quiet(ctx context.Context) {
	s.Until(ctx, 3*s.idle(), func() bool {
		var a audited
		return s.get(ctx, 0, "/v1/audit", &a) == nil && a.Total.Queued+a.Total.Waiting+a.Total.Sending == 0
	})
	_ = s.Wait(ctx, 2*time.Second)
}

// verdict is the judge's, with what the API says of those that weren't sent.
func (s *Stage) verdict(ctx context.Context) error {
	ends, sent, repeats := make(map[string]judge.End), make(map[string]bool), make(map[string]judge.Number)
	if err := s.all(ctx, func(m told) {
		if m.State == "sent" {
			sent[m.ID] = true
			return
		}
		ends[m.ID] = m.end()
		if m.State == "canceled" && m.RepeatOf != "" {
			repeats[m.ID] = judge.Number{Stream: m.Stream, Sequence: m.Sequence}
		}
	}); err != nil {
		s.Broke("the API doesn't say what became of all: %v", err)
	}
	var audit audited
	if err := s.get(ctx, 0, "/v1/audit", &audit); err != nil || !audit.Total.AddsUp || audit.Total.Lost > 0 {
		s.Broke("the audit of all lanes doesn't add up: %+v %v", audit.Total, err)
	}
	if s.drill.Shape.Keyless {
		s.result.Evidence["ended_as_repeats"] = len(repeats)
	}
	harms := s.harms
	harms.InHand, harms.Hold = inHand, hold
	v, err := judge.Decide(judge.Case{
		Client: filepath.Join(s.dir, "accepted.jsonl"), Taken: []string{filepath.Join(s.dir, "providers", sim.TakenFile)}, Ends: ends, Sent: sent, Repeats: repeats,
		Harms: harms, Told: slices.Collect(maps.Keys(s.asked.told)), Whole: s.drill.Shape.Whole,
	})
	if err != nil {
		return err
	}
	r := s.result
	r.Accepted, r.Sent, r.InDoubt, r.Expired, r.Superseded = v.Accepted, v.Sent, v.InDoubt, v.Expired, v.Superseded
	r.Lost, r.Doubled, r.Gaps, r.Stale = v.Lost+v.Forgotten, v.Doubled, v.Gaps, v.Stale
	r.Refused503 = s.load.refused.count()
	r.Broken = append(r.Broken, v.Problems...)
	s.judgeNotice()
	if s.drill.Shape.Calm && v.InDoubt > 0 {
		s.Broke("%d messages are in doubt, although no process was killed", v.InDoubt)
	}
	n := s.load.unreachable.count()
	r.Evidence["unreachable_s"] = n
	if s.drill.Shape.Reachable && n > 0 {
		s.Broke("in %d seconds a request had no answer, although no process that accepts was harmed", n)
	}
	if s.drill.Shape.Mixed {
		r.Evidence["submitted_again_at_once"], r.Evidence["refused_past_their_life"] = s.load.twice.Load(), s.load.late.Load()
	}
	if want := s.opt.Messages - int(s.load.late.Load()); v.Accepted < want {
		s.Broke("%d messages were accepted, of at least %d", v.Accepted, want)
	}
	if s.drill.Shape.Keyless {
		r.Evidence["submitted_again_without_key"], r.Evidence["of_those_without_a_first_answer"] = s.load.keyless.Load(), s.load.unsure.Load()
	}
	late := map[string]any{}
	for class, l := range v.Latency {
		one := map[string]float64{"p50_s": l.P50.Seconds(), "p99_s": l.P99.Seconds(), "max_s": l.Max.Seconds(), "worst_minutes_p99_s": l.Minute.Seconds()}
		if !l.MinuteAt.IsZero() {
			one["worst_minute_from_s"] = l.MinuteAt.Sub(s.start).Seconds()
		}
		late[class] = one
	}
	r.Evidence["latency"] = late
	r.Evidence["asked_what_became_of_it"] = s.asked.states
	if limit, ok := r.Evidence["transactional_p99_limit_s"].(float64); ok && v.Latency["transactional"].Minute.Seconds() > limit {
		s.Broke("transactional messages took %.1f s at the 99th percentile of a minute, over %.0f s", v.Latency["transactional"].Minute.Seconds(), limit)
	}
	slices.Sort(r.Broken)
	r.Pass = !v.Broken() && len(r.Broken) == 0 && r.Bit
	return nil
}

// told is what the API lists of a message.
type told struct {
	ID       string
	State    string
	Stream   string
	Sequence int64
	RepeatOf string `json:"repeat_of"`
	Attempts []struct {
		At        time.Time
		OutcomeAt time.Time `json:"outcome_at"`
		Provider  string
	}
}

// end is what the last attempt says.
func (m told) end() judge.End {
	e := judge.End{State: m.State}
	if len(m.Attempts) > 0 {
		last := m.Attempts[len(m.Attempts)-1]
		e.At, e.Lost, e.Provider = last.At, last.OutcomeAt, last.Provider
	}
	return e
}

// all hands every message to use.
func (s *Stage) all(ctx context.Context, use func(told)) error {
	for cursor := ""; ; {
		var page struct {
			Items []told
			Next  string
		}
		path := "/v1/messages?limit=200"
		if cursor != "" {
			path += "&cursor=" + url.QueryEscape(cursor)
		}
		if err := s.get(ctx, 0, path, &page); err != nil {
			return err
		}
		for _, m := range page.Items {
			use(m)
		}
		if cursor = page.Next; cursor == "" {
			return nil
		}
	}
}
