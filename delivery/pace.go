package delivery

import (
	"math"
	"time"
)

const (
	// A window is judged after paceWindow, once it has paceEnough results, and
	// after twice that in any case.
	paceWindow = time.Second
	paceEnough = 20
	// paceLeast is the slowest pace: hand-overs a second.
	paceLeast = 1.0
	// A window is bad when more than a tenth of it was not taken, and no fewer
	// than paceBad.
	paceBad = 3
	// paceKnee is the part of the rate which was too much that is gone back to
	// quickly; from there on it goes slowly.
	paceKnee = 0.9
	// paceStep is how much faster each good window in a row makes the pace there:
	// by one step, then two, then three.
	paceStep = 0.005
	// paceSame is up to how many times, or what part of, the rate that was too much
	// before another one counts as the same; paceFails is how often it is counted.
	paceSame  = 2
	paceFails = 8
	// paceLift is how many times that rate a provider has to take for its pace to
	// be free: by then the steps are large.
	paceLift = 4
	// paceLag is what is caught up with when a timer fires late.
	paceLag = 2 * time.Millisecond
)

// pace follows what a provider takes: hand-overs a second of one process. There
// is none until a tenth of what is handed over is deferred or its answer lost;
// then it is cut to half or three quarters, and goes up again while the provider takes
// it: quickly to just below the rate that was too much, from there slowly, and
// more slowly each time that the same was too much. Several times that rate ends it.
//
// So a provider that breaks down above some rate gets less, not more, when it
// does. What is rejected counts as taken: it was the message's own fault.
//
// most bounds it in any case, as the settings say.
type pace struct {
	most float64 // 0: none
	rate float64 // 0: none
	next time.Time

	began     time.Time // of the window; what ended before doesn't count
	good, bad int

	fine  float64 // the best of the good windows since the last bad one
	knee  float64 // the rate that was too much
	fails int     // how often it or about the same was, without having got beyond it
	calm  int     // good windows in a row above paceKnee of it
	low   bool    // the last window was bad
}

// wait is how long until one more may begin.
func (p *pace) wait(now time.Time) time.Duration {
	if p.next.IsZero() {
		return 0
	}
	return max(0, p.next.Sub(now))
}

// hold lets none begin before until.
func (p *pace) hold(until time.Time) {
	if p.next.Before(until) {
		p.next = until
	}
}

// rested begins a new window, after a time in which nothing could begin.
func (p *pace) rested(now time.Time) { p.began, p.good, p.bad = now, 0, 0 }

// gap is the time from one to the next; 0: none.
func (p *pace) gap() time.Duration {
	rate := p.rate
	if p.most > 0 && (rate == 0 || rate > p.most) {
		rate = p.most
	}
	if rate == 0 {
		return 0
	}
	return time.Duration(float64(time.Second) / rate)
}

// begin counts one that begins now.
func (p *pace) begin(now time.Time) {
	if gap := p.gap(); gap > 0 {
		if late := now.Add(-paceLag); p.next.Before(late) {
			p.next = late
		}
		p.next = p.next.Add(gap)
	}
}

// back takes back one that began and came to nothing.
func (p *pace) back(now time.Time) {
	if gap := p.gap(); gap > 0 && p.next.After(now) {
		p.next = p.next.Add(-gap)
	}
}

// ended learns from one that ended now, and says whether the rate was cut or
// lifted.
func (p *pace) ended(now time.Time, taken bool) (changed bool) {
	if p.began.IsZero() {
		p.began = now
	}
	if now.Before(p.began) { // begun at the rate of before
		return false
	}
	if taken {
		p.good++
	} else {
		p.bad++
	}
	total, took := p.good+p.bad, now.Sub(p.began)
	if took < paceWindow || total < paceEnough && took < 2*paceWindow {
		return false
	}
	was := p.rate
	p.judge(total, float64(total)/took.Seconds())
	p.began, p.good, p.bad = now, 0, 0
	if p.low {
		p.began = now.Add(paceWindow / 2)
	}
	return p.low || was > 0 && p.rate == 0
}

// judge sets the rate for the next window by this one's results, of which there
// were so many a second.
func (p *pace) judge(total int, speed float64) {
	if p.bad >= paceBad && 10*p.bad > total {
		p.cut(2*p.bad > total, speed)
		return
	}
	p.low, p.fine = false, max(p.fine, speed)
	switch {
	case p.rate == 0 || speed < 0.7*p.rate: // nothing holds it back
	case p.rate < paceKnee*p.knee:
		p.rate = min(2*p.rate, paceKnee*p.knee)
	default:
		p.calm++
		p.rate += max(0.1, p.rate*paceStep*float64(p.calm)/float64(max(1, p.fails)))
		if p.rate > paceLift*p.knee {
			p.rate, p.fails, p.calm = 0, 0, 0
		}
	}
}

func (p *pace) cut(most bool, speed float64) {
	at := speed
	if p.rate > 0 {
		at = min(speed, p.rate)
	}
	if !p.low { // else it is still the same trouble
		if at < p.knee/paceSame || at > p.knee*paceSame {
			p.fails = 0 // it breaks down at any rate: this one is not the cause
		}
		p.fails = min(p.fails+1, paceFails)
		p.knee = at
		if p.fine > at/4 && p.fine < at { // the truth is in between
			p.knee = math.Sqrt(p.fine * at)
		}
	}
	p.calm, p.low, p.fine = 0, true, 0
	part := 0.75
	if most {
		part = 0.5
	}
	p.rate = max(paceLeast, at*part)
}
