package delivery

import (
	"cmp"
	"math/rand/v2"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/plant"
)

// What is kept of a provider's words, in bytes.
const (
	maxCode      = 100
	maxReply     = 500
	maxReference = 250
)

// settle makes the end of an attempt durable, and waits until it is: so open
// attempts are bounded by the senders. An attempt whose end could not be
// recorded before the worker's end stays open.
func (a *attempt) settle(provider string, r message.Result) {
	r.Code, r.Reply, r.Reference = plain(r.Code, maxCode), plain(r.Reply, maxReply), plain(r.Reference, maxReference)
	key := message.AttemptKey{Position: a.env.Position, Attempt: a.env.Attempt}
	var err error
	if r.Poison {
		reason := cmp.Or(r.Reply, r.Code, "the provider can't handle it")
		err = a.insist(a.final, opHold, func() error { return a.cfg.Ledger.Hold(a.final, key, reason) })
		if err == nil {
			a.log.Warn("message is held", "lane", a.lane.name, "position", a.env.Position, "provider", provider, "code", r.Code)
		}
	} else {
		report := a.report(provider, r)
		err = a.insist(a.final, opRecord, func() error { return a.cfg.Ledger.Record(a.final, report) })
		if err == nil && report.RetryIn == 0 && r.Outcome == message.Returned {
			a.lane.wake() // it is due at once
		}
	}
	a.lane.meter.ended(provider, r)
	a.watch.ended(a.span, provider, r)
	if err == nil {
		a.lane.hand.end(key)
	}
}

// report says when a message that was not taken is tried again.
func (a *attempt) report(provider string, r message.Result) message.Report {
	if plant.Is(plant.RetryUnknown) && r.Outcome == message.Unknown {
		r.Outcome = message.Deferred
	}
	report := message.Report{Position: a.env.Position, ID: a.env.ID, Attempt: a.env.Attempt, Provider: provider, Result: r}
	switch r.Outcome {
	case message.Deferred:
	case message.Returned:
		if a.verdict == tooOld || a.soft.Err() != nil {
			return report // at once
		}
	case message.Unknown:
		report.Resend = a.again
		if a.lane.policy == ResendDoubts {
			report.Resend = "policy:" + a.lane.name
		}
		if report.Resend == "" {
			return report
		}
	default:
		return report
	}
	report.RetryIn = a.retryIn(r)
	return report
}

// retryIn is the wait before the next attempt. Asked again, it may say another
// one of the same bound.
func (a *attempt) retryIn(r message.Result) time.Duration {
	left := a.life - a.clock().Since(a.begun)
	return a.cfg.Retry.retryIn(a.env.Attempt, r, left, rand.Float64())
}

// plain is one line of at most most bytes that the ledger can keep: valid UTF-8
// without control characters.
func plain(s string, most int) string {
	if len(s) <= most && strings.IndexFunc(s, unfit) < 0 {
		return s
	}
	s = strings.Map(func(r rune) rune {
		if unfit(r) {
			return ' '
		}
		return r
	}, s[:min(len(s), 4*most)])
	for len(s) > most {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return s
}

func unfit(r rune) bool { return r < ' ' || r == 0x7f || r == utf8.RuneError }
