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
	Provider           Kind = "provider"   // subject: the provider's name
	Credential         Kind = "credential" // subject: the credential's name
	NoWorker           Kind = "no_worker"
	ClusterChanged     Kind = "cluster_changed" // subject: the cluster, where there are several
	Evacuated          Kind = "evacuated"
	JournalNotDraining Kind = "journal_not_draining"
	RolledBack         Kind = "ledger_rolled_back"
	ReplayStuck        Kind = "replay_stuck" // subject: the replay's number
	Held               Kind = "held"         // subject: what for
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
	holdsUp  bool   // messages are late, or not accepted, because of it
}

var kinds = map[Kind]nature{
	Stall: {3 * time.Second, 10 * time.Second, Critical, "a-lanes-backlog-grows",
		"stormpost messages --state queued", true},
	LedgerAway: {3 * time.Second, 6 * time.Second, Critical, "postgresql-away-or-slow",
		`psql "$STORMPOST_DSN" -c 'select pg_is_in_recovery()'`, true},
	KafkaAway: {2 * time.Second, 6 * time.Second, Warning, "kafka-away",
		`curl -sS -H "Authorization: Bearer $STORMPOST_API_KEY" "$STORMPOST_API/v1/lanes"`, true},
	Numbering: {0, 5 * time.Second, Critical, "numbering-is-lost",
		"stormpost preflight", true},
	InDoubt: {2 * time.Second, 5 * time.Second, Warning, "messages-in-doubt",
		"stormpost messages --state in_doubt", false},
	Provider: {2 * time.Second, 15 * time.Second, Critical, "a-provider-is-down",
		"stormpost messages --state waiting", true},
	Credential: {2 * time.Second, 10 * time.Second, Warning, "credentials-and-certificates",
		"stormpost credentials", false},
	NoWorker: {0, 5 * time.Second, Critical, "a-lanes-backlog-grows",
		"stormpost serve --roles worker", true},
	ClusterChanged: {0, 5 * time.Second, Warning, "kafka-away",
		`curl -sS -H "Authorization: Bearer $STORMPOST_API_KEY" "$STORMPOST_API/v1/lanes"`, false},
	Evacuated: {0, 5 * time.Second, Warning, "kafka-away",
		"stormpost evacuate --to main --dry-run", false},
	RolledBack: {0, 5 * time.Second, Critical, "the-ledger-was-rolled-back", "stormpost reconcile --dry-run", true},
	ReplayStuck: {0, 5 * time.Second, Warning, "a-replay-doesnt-come-on",
		"stormpost replay list", false},
	Held: {0, 5 * time.Second, Warning, "parked-records-and-held-messages",
		"stormpost messages --state held", false},
	JournalNotDraining: {2 * time.Second, 10 * time.Second, Critical, "postgresql-away-or-slow",
		"stormpost serve --roles recovery", true},
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
