package message

import "time"

// Origin is what a message's content doesn't say of it, so that a ledger that
// lost the message can have it again from Kafka alone.
type Origin struct {
	Tenant     int32
	Test       bool
	AcceptedAt time.Time
	ExpiresAt  time.Time
	Sequence   int64 // its number in its stream
}

// StepKind is what is told of an attempt: its outcome, as Outcome has it, or one
// of these.
type StepKind int8

// What is told beside outcomes.
const (
	StepClaimed  StepKind = 0 // it may be handed over from now on
	StepCanceled StepKind = 6
)

var stepNames = [...]string{"claimed", "sent", "deferred", "rejected", "unknown", "returned", "canceled"}

func (k StepKind) String() string {
	if k < 0 || int(k) >= len(stepNames) {
		return "unknown"
	}
	return stepNames[k]
}

// ParseStepKind reads what String writes.
func ParseStepKind(s string) (StepKind, bool) {
	for i, name := range stepNames {
		if s == name {
			return StepKind(i), true
		}
	}
	return 0, false
}

// Step is what is told, outside of the ledger, of one attempt.
type Step struct {
	Position Position
	ID       ID
	Attempt  int
	Kind     StepKind
	At       time.Time
	Provider string
	Code     string
}

// After says whether s tells more of its message than o. Of two ends of one attempt,
// which a restored ledger has made twice, the one does by which it may have been taken.
func (s Step) After(o Step) bool {
	return s.Attempt > o.Attempt || s.Attempt == o.Attempt && s.Kind.weight() > o.Kind.weight()
}

func (k StepKind) weight() int {
	switch k {
	case StepKind(Sent):
		return 4
	case StepKind(Unknown):
		return 3
	case StepKind(Rejected), StepCanceled:
		return 2
	case StepClaimed:
		return 0
	}
	return 1
}

// Lost is a submission that a rolled-back ledger may not know, as Kafka has it.
type Lost struct {
	Journaled
	Submission int64 // the number in its position
	First      int64 // number of its first message in the stream; 0: not known
}

// Reentered is where a Lost one is now.
type Reentered struct {
	Submission int64
	Fresh      bool // the ledger did not know it
}

// Rollback is a rollback of the ledger that was noticed.
type Rollback struct {
	At     time.Time // when it was noticed
	Cause  string
	BackTo time.Time // up to when the ledger's history is known, about
}

// StreamOf names a stream.
type StreamOf struct {
	Tenant int32
	Name   string
}
