package judge

import (
	"slices"
	"time"
)

// Latency is percentiles. Minute is the 99th of the minute in which it was worst,
// which began at MinuteAt, by the times of the requests, of those with a hundred or
// more.
type Latency struct {
	P50, P99, Max, Minute time.Duration
	MinuteAt              time.Time
}

// latency is how long a message took that was first submitted at a time.
type latency struct {
	at   time.Time
	took time.Duration
}

func latencyOf(all []latency) (l Latency) {
	sorted := func(from, until int) (took []time.Duration) {
		for _, x := range all[from:until] {
			took = append(took, x.took)
		}
		slices.Sort(took)
		return took
	}
	took := sorted(0, len(all))
	l = Latency{P50: took[len(took)/2], P99: took[len(took)*99/100], Max: took[len(took)-1]}
	slices.SortFunc(all, func(a, b latency) int { return a.at.Compare(b.at) })
	for from := 0; from < len(all); {
		until := from + 1
		for until < len(all) && all[until].at.Sub(all[from].at) < time.Minute {
			until++
		}
		if took := sorted(from, until); len(took) >= 100 {
			if p99 := took[len(took)*99/100]; p99 > l.Minute {
				l.Minute, l.MinuteAt = p99, all[from].at
			}
		}
		from = until
	}
	if l.P99 > l.Minute {
		l.Minute, l.MinuteAt = l.P99, time.Time{}
	}
	return l
}
