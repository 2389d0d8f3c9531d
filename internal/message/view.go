package message

import "time"

// View is what the ledger knows of one message.
type View struct {
	Position   Position
	ID         ID
	Tenant     int32
	State      State
	Reason     string // why it failed, is held or in doubt
	Stream     string
	Sequence   int64
	Lane       Lane
	Recipient  string
	AcceptedAt time.Time
	EnteredAt  time.Time // when it came out of the journal; zero if it never was there
	ExpiresAt  time.Time
	DueAt      time.Time // of the next attempt, zero when not waiting
	Aside      string    // "its tenant is held", "its tag NAME is held": that has set the attempt aside
	Trace      string
	RepeatOf   ID     // the submission that this one's repeats, if it has an index
	Content    []byte // canonical; nil in lists, and when it was erased by age
	Attempts   []Attempt
	Events     []ProviderEvent // without ids
}

// Attempt is one row of a message's history. Kind is send, cancel, expire,
// supersede or hold; the fields of the outcome are zero while there is none.
type Attempt struct {
	Number    int
	Kind      string
	Worker    int32
	At        time.Time
	Outcome   Outcome
	OutcomeAt time.Time
	Provider  string
	Code      string
	Reply     string
	Reference string
	Decision  Decision
	DecidedBy string
	DecidedAt time.Time
	Because   string
}

// Filter narrows a list of messages. Zero fields don't narrow.
type Filter struct {
	Tenant     int32
	Submission ID // with a zero ID meaning all
	Key        *KeyHash
	Stream     string
	State      State
	Class      Class
	Channel    Channel
	To         string // the whole recipient
	Tag        string
	Since      time.Time
	Cursor     string
	Limit      int // 1 to 200
}

// Page is one page of a list, newest first. Next is the Cursor of the next
// page and empty on the last one; a page may hold fewer than Limit before it.
type Page[T any] struct {
	Items []T
	Next  string
}

// LaneView is how a lane is doing.
type LaneView struct {
	Lane      Lane
	Depth     int64         // accepted, not ended, ready to be sent
	Waiting   int64         // scheduled or between attempts
	OldestAge time.Duration // of the oldest ready one, zero when there is none
	OldestAt  time.Time     // since when that one is ready, by the ledger's clock
	Journaled int64         // what only the journals have, and will be ready; negative: nobody here knows how much
	InRate    float64       // messages accepted a second at the door, over the last seconds
	OutRate   float64       // first attempts made a second, likewise
	ETA       time.Duration // until Depth and Journaled are gone at these rates; negative: never, or not known

	// Since when doesn't matter: the difference of two views is what happened
	// between them. It is negative when a process's count fell out.
	Accepted  int64 // messages accepted
	Entered   int64 // of those, what came out of a journal
	Attempted int64 // attempts made
}

// Backlog is what of a lane is ready and unsent, and how fast it goes.
type Backlog struct {
	Lane    Lane
	Total   int64
	Tenants map[int32]int64 // nil when they were not counted
	OutRate float64         // messages a second
}

// DoubtsOpen is how many doubts are open, up to a bound, and since when.
type DoubtsOpen struct {
	Count  int64
	Oldest time.Duration
}

// HeldOpen is how many messages, or of HeldParked submissions, wait for a person for
// one cause, up to a bound, and since when.
type HeldOpen struct {
	Cause  string
	Count  int64
	Oldest time.Duration
}

// The causes.
const (
	HeldConflict = "key_conflict" // another request came first under the key
	HeldPoison   = "poison"       // it can't be handed over: it is unreadable, or a provider's code failed on it
	HeldParked   = "parked"       // the ledger refused what the journal had accepted
)

// ProviderHealth is how a provider is doing in one process, whose counts are
// those since its start.
type ProviderHealth struct {
	Name    string
	Channel Channel
	Trouble string        // why it can't be used now; empty when it can, or when nobody needs it
	Since   time.Duration // for how long that has been so
	Waiting int           // senders that wait for it

	Taken, Deferred, Rejected, Unknown int64 // hand-overs, by how they ended
}

// Doubt is an attempt of which nobody can know whether the provider took it.
type Doubt struct {
	View
	Attempt  int
	Cause    string // "unknown": the provider's answer was lost; "silent": its worker is gone
	Since    time.Time
	Provider string
}

// ClaimedAt is when the attempt in doubt was claimed.
func (d *Doubt) ClaimedAt() time.Time {
	for _, a := range d.Attempts {
		if a.Number == d.Attempt {
			return a.At
		}
	}
	return d.AcceptedAt
}
