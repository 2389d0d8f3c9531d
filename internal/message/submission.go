package message

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
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
	// RepeatsSince, for one whose key was made, is from when on it counts as a
	// repeat of what was accepted with the same content; zero: it never does.
	RepeatsSince time.Time
}

// Submit makes the submission that content asks for. An empty key is an error:
// whoever takes requests without one makes one (SubmitKeyless). A zero ExpiresAt
// is set to life after the later of now and SendAt.
func Submit(tenant int32, key string, c *Content, now time.Time, life time.Duration) (*Submission, error) {
	if key == "" {
		return nil, fmt.Errorf("a submission needs an idempotency key")
	}
	s, err := submit(tenant, c, now, life)
	if err == nil {
		s.Key = HashKey(tenant, key)
	}
	return s, err
}

// SubmitKeyless is Submit for a request that has no key: it gets one that no
// other has.
func SubmitKeyless(tenant int32, test bool, c *Content, now time.Time, life time.Duration) (*Submission, error) {
	s, err := submit(tenant, c, now, life)
	if err == nil {
		s.Test = test
		start := s.keyStart()
		copy(s.Key[:], start[:])
		binary.BigEndian.PutUint32(s.Key[6:], uint32(now.Unix()))
		_, _ = rand.Read(s.Key[10:])
	}
	return s, err
}

// keyStart begins every key that was made for a request with s's content, so that
// its repeats stand beside each other in the one index of keys, by time:
//
//	bytes 0–5    SHA-256 over tenant, mode and fingerprint
//	bytes 6–9    seconds since 1970, big-endian
//	bytes 10–15  random
func (s *Submission) keyStart() [6]byte {
	h := sha256.New()
	var t [6]byte
	t[0] = 2 // version of the scheme
	binary.BigEndian.PutUint32(t[1:], uint32(s.Tenant))
	if s.Test {
		t[5] = 1
	}
	h.Write(t[:])
	h.Write(s.Print[:])
	return [6]byte(h.Sum(nil))
}

// Keyless says that the request had no key of its own.
func (s *Submission) Keyless() bool { return [6]byte(s.Key[:6]) == s.keyStart() }

func submit(tenant int32, c *Content, now time.Time, life time.Duration) (*Submission, error) {
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
		Tenant: tenant, Print: FingerprintOf(b), Content: b,
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

// AcceptSlack is how much later than it was asked the ledger may count a request
// with a supersede key as accepted, whenever it comes to it. Whoever gives the
// ledger up, and answers otherwise, does so later than this: what is submitted
// after the answer is newer.
const AcceptSlack = 200 * time.Millisecond

// Receipt is what the ledger answers to a submission that it holds.
type Receipt struct {
	Submission int64 // its number in Position
	Sequence   int64 // of its first message in the stream; the others follow
	Replayed   bool  // it was there before
	Waiting    bool  // scheduled: not to be published
	Held       bool  // set aside, since another request had its key: not to be published
	RepeatOf   ID    // of the submission whose content this one has; if Replayed, the receipt is that one's
	Ended      bool  // it is suppressed as a repeat: not to be published
	// States is what has become of its messages by now, if Replayed; nil when
	// nobody can tell.
	States []State
}

// Item asks for one attempt of one message: what a Kafka record carries and
// what the ledger feeds. Whoever wants to make the attempt must claim it.
type Item struct {
	Position Position
	ID       ID
	Attempt  int     // 1 or more
	Content  []byte  // canonical; nil where only the ledger has it
	Trace    string  // W3C traceparent of the submission, or empty
	Provider string  // whom it is claimed for; set by the worker
	Tenant   int32   // whose it is; 0 if nobody said
	Before   Before  // what became of the attempt before
	Origin   *Origin // what Kafka keeps beside; nil where the ledger fed it
}

// Before is how the attempt before an item's ended. Its zero is for the first,
// and for those that nobody knows the end of.
type Before struct {
	Provider string
	Outcome  Outcome
	Basis    string // who decided last that the message is to be resent, or empty
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
	// Account, if it isn't empty, is the only account (delivery.Accounted) that
	// the message may be handed to: a repeat is absorbed there alone.
	Account string
	// Until is when steps before the last check have taken too long, by this
	// machine's clock. Zero: there is no such bound.
	Until time.Time
}
