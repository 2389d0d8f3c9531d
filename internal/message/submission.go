package message

import (
	"fmt"
	"time"
)

// Submission is a validated request on its way into the ledger.
type Submission struct {
	Tenant     int32
	Key        KeyHash
	Print      Fingerprint
	Content    []byte // canonical
	Lane       Lane
	Stream     string
	Recipients []string  // 1 to MaxRecipients
	SendAt     time.Time // zero: at once
	ExpiresAt  time.Time // never zero
	Trace      string    // W3C traceparent, or empty
	Test       bool      // by a test-mode key: never reaches a provider
	Supersede  string    // of those with this key only the newest is sent; or empty
}

// Submit makes the submission that content asks for. An empty key is an error:
// whoever takes requests without one makes one. A zero ExpiresAt is set to life
// after the later of now and SendAt.
func Submit(tenant int32, key string, c *Content, now time.Time, life time.Duration) (*Submission, error) {
	if key == "" {
		return nil, fmt.Errorf("a submission needs an idempotency key")
	}
	lane, err := c.Lane()
	if err != nil {
		return nil, err
	}
	b, err := c.Encode()
	if err != nil {
		return nil, err
	}
	o := c.Options()
	s := &Submission{
		Tenant: tenant, Key: HashKey(tenant, key), Print: FingerprintOf(b), Content: b,
		Lane: lane, Stream: c.Stream(), Recipients: c.Recipients(), SendAt: o.SendAt, ExpiresAt: o.ExpiresAt,
		Supersede: o.SupersedeKey,
	}
	if s.ExpiresAt.IsZero() {
		from := now
		if s.SendAt.After(from) {
			from = s.SendAt
		}
		s.ExpiresAt = from.Add(life)
	}
	return s, nil
}

// ID is the submission's id.
func (s *Submission) ID() ID { return SubmissionID(s.Key, s.Print) }

// Receipt is what the ledger answers to a submission that it holds.
type Receipt struct {
	Submission int64 // its number in Position
	Sequence   int64 // of its first message in the stream; the others follow
	Replayed   bool  // it was there before
	Waiting    bool  // scheduled: not to be published
	Held       bool  // set aside, since another request had its key: not to be published
}

// Item asks for one attempt of one message: what a Kafka record carries and
// what the ledger feeds. Whoever wants to make the attempt must claim it.
type Item struct {
	Position Position
	ID       ID
	Attempt  int    // 1 or more
	Content  []byte // canonical; nil where only the ledger has it
	Trace    string // W3C traceparent of the submission, or empty
	Provider string // whom it is claimed for; set by the worker
}

// Envelope is one message to one recipient, as a provider gets it.
type Envelope struct {
	Position  Position
	ID        ID
	Attempt   int
	Tenant    int32
	Recipient string // a mailbox, or Target.String
	Content   *Content
	ExpiresAt time.Time // by the ledger's clock at the claim
}
