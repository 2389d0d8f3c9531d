package incident

import (
	"cmp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Condition is something that is wrong at the moment, as a check sees it.
type Condition struct {
	Kind    Kind
	Subject string // which lane or provider; empty where there is but one
	Summary string // one line for people, without recipients and secrets
	Lane    string // CLASS.CHANNEL, if it is about one
	Count   int64  // messages affected; 0: not known
	Oldest  time.Duration
	ETA     time.Duration // until it is over by itself; 0: not known, negative: never
	// Severity and Command are the kind's if empty.
	Severity Severity
	Command  string
}

// Cause is what incidents are told apart by.
func (c *Condition) Cause() string {
	if c.Subject == "" {
		return string(c.Kind)
	}
	return string(c.Kind) + "/" + c.Subject
}

func (c *Condition) severity() Severity { return cmp.Or(c.Severity, kinds[c.Kind].severity) }

// Incident is what the API, the sinks and the file know of one cause's trouble.
type Incident struct {
	ID        string   `json:"id"`
	Cause     string   `json:"cause"`
	Kind      Kind     `json:"kind"`
	Severity  Severity `json:"severity"` // the worst since it opened
	Summary   string   `json:"summary"`
	Lane      string   `json:"lane,omitempty"`
	Count     int64    `json:"count"`                 // messages affected, as far as is known
	OldestAge float64  `json:"oldest_age_seconds"`    // of the oldest one, or since when a store is away
	ETA       *float64 `json:"eta_seconds,omitempty"` // until it is over; absent: not known, or never
	Runbook   string   `json:"runbook"`               // a link to the section that helps
	Command   string   `json:"command"`               // a command that helps

	OpenedAt   time.Time  `json:"opened_at"`
	UpdatedAt  time.Time  `json:"updated_at"`
	ResolvedAt *time.Time `json:"resolved_at,omitempty"` // absent while it is open

	// Returns counts how often in a row the cause came back within minutes.
	Returns int `json:"returns,omitempty"`
}

// State is open or resolved.
func (i *Incident) State() string {
	if i.ResolvedAt == nil {
		return "open"
	}
	return "resolved"
}

// What is kept of texts, in bytes.
const (
	maxSummary = 400
	maxCommand = 300
	maxCause   = 100
)

// facts takes over what c says, and tells whether that changed anything.
func (i *Incident) facts(c *Condition) bool {
	was := *i
	i.Summary, i.Lane, i.Count = line(c.Summary, maxSummary), line(c.Lane, maxCause), c.Count
	i.OldestAge = c.Oldest.Round(time.Millisecond).Seconds()
	i.ETA = nil
	if c.ETA > 0 {
		i.ETA = new(c.ETA.Round(time.Millisecond).Seconds())
	}
	if c.Command != "" {
		i.Command = line(c.Command, maxCommand)
	}
	sameETA := was.ETA == i.ETA || was.ETA != nil && i.ETA != nil && *was.ETA == *i.ETA
	return was.Summary != i.Summary || was.Lane != i.Lane || was.Count != i.Count || was.OldestAge != i.OldestAge ||
		was.Command != i.Command || !sameETA
}

// line is one line of at most most bytes of valid UTF-8.
func line(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return ' '
		}
		return r
	}, s[:min(len(s), 4*most)])
	for len(s) > most {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return strings.TrimSpace(s)
}

// Change is what happened to an incident.
type Change string

// The changes.
const (
	Opened   Change = "opened"
	Updated  Change = "updated"
	Resolved Change = "resolved"
)

// Event tells a sink of a change.
type Event struct {
	ID       string // the same in every try to deliver it
	Change   Change
	Incident Incident // as it was then
	// Was is the severity that an Updated incident had before, if it became worse.
	Was Severity
}
