package incident

import (
	"slices"
	"time"
)

// Kind is what sort of thing is wrong. A cause is a kind, or KIND/SUBJECT.
type Kind string

// The kinds. Whoever adds one adds a row to kinds.
const (
	Stall              Kind = "stall" // subject: the lane
	LedgerAway         Kind = "ledger_away"
	KafkaAway          Kind = "kafka_away"
	Numbering          Kind = "numbering"
	InDoubt            Kind = "in_doubt"
	Provider           Kind = "provider" // subject: the provider's name
	NoWorker           Kind = "no_worker"
	ClusterChanged     Kind = "cluster_changed"
	JournalNotDraining Kind = "journal_not_draining"
)

// Severity is how much it matters.
type Severity string

// The severities.
const (
	Critical Severity = "critical" // messages are late, or not accepted
	Warning  Severity = "warning"  // nothing is late because of it yet
)

// nature is what all incidents of a kind have in common.
type nature struct {
	wait     time.Duration // how long the condition must have held
	hold     time.Duration // how long it must have been gone
	severity Severity
	runbook  string // anchor of a section in docs/runbook.md
	command  string // what helps to begin with
}

var kinds = map[Kind]nature{
	Stall: {3 * time.Second, 10 * time.Second, Critical, "a-lanes-backlog-grows",
		"stormpost messages --state queued"},
	LedgerAway: {3 * time.Second, 6 * time.Second, Critical, "postgresql-away-or-slow",
		`psql "$STORMPOST_DSN" -c 'select pg_is_in_recovery()'`},
	KafkaAway: {2 * time.Second, 6 * time.Second, Warning, "kafka-away",
		`curl -sS -H "Authorization: Bearer $STORMPOST_API_KEY" "$STORMPOST_API/v1/lanes"`},
	Numbering: {0, 5 * time.Second, Critical, "numbering-is-lost",
		"stormpost preflight"},
	InDoubt: {2 * time.Second, 5 * time.Second, Warning, "messages-in-doubt",
		"stormpost messages --state in_doubt"},
	Provider: {2 * time.Second, 15 * time.Second, Critical, "a-provider-is-down",
		"stormpost messages --state waiting"},
	NoWorker: {0, 5 * time.Second, Critical, "a-lanes-backlog-grows",
		"stormpost serve --roles worker"},
	ClusterChanged: {0, 5 * time.Second, Warning, "kafka-away",
		`curl -sS -H "Authorization: Bearer $STORMPOST_API_KEY" "$STORMPOST_API/v1/lanes"`},
	JournalNotDraining: {2 * time.Second, 10 * time.Second, Critical, "postgresql-away-or-slow",
		`psql "$STORMPOST_DSN" -c 'select pg_is_in_recovery()'`},
}

// Kinds lists every kind, in order.
func Kinds() []Kind {
	var all []Kind
	for k := range kinds {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}
