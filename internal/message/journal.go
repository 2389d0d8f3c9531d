package message

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"time"
)

// Journaled is a submission that Kafka keeps while the ledger is away.
type Journaled struct {
	*Submission
	AcceptedAt time.Time // at the door
}

// Parked is a record that the ledger can't take. A journal's was answered 202: what
// follows Reason is of its submission, and zero where it can't be read.
type Parked struct {
	Source string // where it stands
	Raw    []byte
	Reason string

	ID         ID // the submission's
	Tenant     int32
	Lane       Lane
	Recipients int
	AcceptedAt time.Time
}

// Parked is j's record, parked.
func (j Journaled) Parked(source string, raw []byte, reason string) Parked {
	return Parked{source, raw, reason, j.ID(), j.Tenant, j.Lane, len(j.Recipients), j.AcceptedAt}
}

// ErrNumbering is wrapped, beside ErrUnavailable, by what the ledger answers
// when it can't number a stream's messages. It says nothing of other streams.
var ErrNumbering = errors.New("numbering is broken")

// Restore makes the submission again that Submit made of content, from what
// content doesn't say. It fails for content that Submit would have refused.
func Restore(tenant int32, key KeyHash, content []byte, expires time.Time, test bool, trace string) (*Submission, error) {
	c, err := DecodeContent(content)
	if err != nil {
		return nil, err
	}
	lane, err := c.Lane()
	if err != nil {
		return nil, err
	}
	to := c.Recipients()
	switch {
	case tenant <= 0:
		return nil, fmt.Errorf("its tenant is %d", tenant)
	case len(to) == 0 || len(to) > MaxRecipients:
		return nil, fmt.Errorf("it has %d recipients", len(to))
	}
	return &Submission{
		Tenant: tenant, Key: key, Print: FingerprintOf(content), Content: content, Lane: lane, Stream: c.Stream(),
		Recipients: to, SendAt: c.Options().SendAt, ExpiresAt: expires, Trace: trace, Test: test,
		Supersede: c.Options().SupersedeKey,
	}, nil
}

// ConflictKey is the key under which the ledger keeps the submission of id when
// another request came into it first under id's own key. It is made of what every
// id of the submission tells, so that it can be found by any of them.
func ConflictKey(id ID) KeyHash {
	h := sha256.New()
	h.Write([]byte("key_conflict"))
	h.Write(id[:24])
	return KeyHash(h.Sum(nil)[:16])
}

// Items is one request for a first attempt for each message of s, accepted now.
func (s *Submission) Items(r Receipt) []Item { return s.items(r, time.Now()) }

// Items is one request for a first attempt for each message of j.
func (j Journaled) Items(r Receipt) []Item { return j.items(r, j.AcceptedAt) }

func (s *Submission) items(r Receipt, at time.Time) []Item {
	id := s.ID()
	out := make([]Item, len(s.Recipients))
	for i := range out {
		out[i] = Item{
			Position: PositionOf(s.Lane, r.Submission, i), ID: id.Message(i), Attempt: 1, Content: s.Content, Trace: s.Trace,
			Origin: &Origin{Tenant: s.Tenant, Test: s.Test, AcceptedAt: at, ExpiresAt: s.ExpiresAt, Sequence: r.Sequence + int64(i)},
		}
	}
	return out
}
