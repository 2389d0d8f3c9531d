package dedupe

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// rateWindow is how far back rates look.
	rateWindow = 20 * time.Second
	// mostBeats bounds how many heartbeats of a process are remembered.
	mostBeats = 64
)

// laneSample is what a process had accepted and attempted by a heartbeat.
type laneSample struct {
	at               time.Time // by the ledger's clock
	in, entered, out [laneCodes]int64
}

// beats is a process's last heartbeats, oldest first.
type beats struct {
	samples []laneSample
	seen    time.Time // when it was last among those that beat, by this process's clock
}

// sampleLanes reads the heartbeats. The caller holds lanes.mu.
func (l *Ledger) sampleLanes(ctx context.Context) error {
	rows, err := l.pool.Query(ctx, `
		select id, beat_at, accepted, attempted, beat_at > clock_timestamp() - $1::interval
		from process where beat_at > clock_timestamp() - interval '10 minutes'`, rateWindow)
	if err != nil {
		return unavailable("lanes", err)
	}
	r := &l.lanes
	if r.beats == nil {
		r.beats = make(map[int32]*beats)
	}
	now := time.Now()
	r.total = laneSample{at: now}
	var id int32
	var at time.Time
	var in, out []int64
	var fresh bool
	if _, err := pgx.ForEachRow(rows, []any{&id, &at, &in, &out, &fresh}, func() error {
		s := laneSample{at: at}
		copy(s.in[:], in)
		copy(s.entered[:], in[min(len(in), laneCodes):]) // the release before tells none
		copy(s.out[:], out)
		for i := range s.in {
			r.total.in[i] += s.in[i]
			r.total.entered[i] += s.entered[i]
			r.total.out[i] += s.out[i]
		}
		if !fresh {
			return nil
		}
		b := r.beats[id]
		if b == nil {
			b = &beats{}
			r.beats[id] = b
		}
		b.add(s)
		b.seen = now
		return nil
	}); err != nil {
		return unavailable("lanes", err)
	}
	for id, b := range r.beats {
		if b.seen != now {
			delete(r.beats, id)
		}
	}
	return nil
}

// add keeps what is needed of the window. Between two heartbeats the counts stand
// still, so only a new one is a sample. One from before the last says that the clock
// went back: it begins anew.
func (b *beats) add(s laneSample) {
	if n := len(b.samples); n > 0 && s.at.Equal(b.samples[n-1].at) {
		return
	} else if n > 0 && s.at.Before(b.samples[n-1].at) {
		b.samples = b.samples[:0]
	}
	b.samples = append(b.samples, s)
	for len(b.samples) > 2 && (s.at.Sub(b.samples[1].at) >= rateWindow || len(b.samples) > mostBeats) {
		b.samples = b.samples[1:]
	}
}

// rates is messages accepted at the door, entered out of a journal, and first attempts
// made a second, by the times of the heartbeats that told of them. They look back to
// where attempts began to be made, if that was within the window: what stood still
// before says nothing of how fast it goes now.
func (r *laneReader) rates(code int) (in, entered, out float64) {
	for _, b := range r.beats {
		last := len(b.samples) - 1
		first := last
		for first > 0 && b.samples[first].out[code] > b.samples[first-1].out[code] {
			first--
		}
		if last-first >= 2 {
			first++ // attempts began, or this process to look, somewhere within this step
		}
		out += perSecond(b.samples, first, func(s *laneSample) int64 { return s.out[code] })
		if first == last {
			first = 0
		}
		in += perSecond(b.samples, first, func(s *laneSample) int64 { return s.in[code] - s.entered[code] })
		entered += perSecond(b.samples, first, func(s *laneSample) int64 { return s.entered[code] })
	}
	return in, entered, out
}

func perSecond(samples []laneSample, first int, count func(*laneSample) int64) float64 {
	a, z := &samples[first], &samples[len(samples)-1]
	took := z.at.Sub(a.at).Seconds()
	if took <= 0 {
		return 0
	}
	return float64(count(z)-count(a)) / took
}
