package message

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"strings"
)

// ErrBadID is what ParseID returns for anything that is not an id.
var ErrBadID = errors.New("not a message or submission id")

const submissionIndex = 0xff

var idText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// KeyHash identifies a submission within the whole ledger: 128 bits of SHA-256
// over tenant and idempotency key.
type KeyHash [16]byte

// Fingerprint is SHA-256 over a submission's canonical content. Two requests
// under one key are the same request exactly when their fingerprints are equal.
type Fingerprint [32]byte

// HashKey hashes a tenant's idempotency key.
func HashKey(tenant int32, key string) KeyHash {
	h := sha256.New()
	var t [5]byte
	t[0] = 1 // version of the scheme
	binary.BigEndian.PutUint32(t[1:], uint32(tenant))
	h.Write(t[:])
	h.Write([]byte(key))
	return KeyHash(h.Sum(nil)[:16])
}

// HashSupersede hashes a tenant's supersede key. Test and live messages never
// supersede each other.
func HashSupersede(tenant int32, test bool, key string) [16]byte {
	h := sha256.New()
	var t [6]byte
	t[0] = 1 // version of the scheme
	binary.BigEndian.PutUint32(t[1:], uint32(tenant))
	if test {
		t[5] = 1
	}
	h.Write(t[:])
	h.Write([]byte(key))
	return [16]byte(h.Sum(nil)[:16])
}

// FingerprintOf is the fingerprint of canonical content.
func FingerprintOf(content []byte) Fingerprint { return sha256.Sum256(content) }

// ID names a message, or with index 0xff its submission. It is a function of
// tenant, idempotency key, request and recipient index alone: whichever store
// took a submission, and however often it is repeated, the ids are the same,
// and nothing has to be stored to find an id again.
//
//	bytes 0–15   KeyHash
//	bytes 16–23  the first 8 bytes of the Fingerprint
//	byte  24     recipient index
type ID [25]byte

// SubmissionID is the id of a submission as a whole.
func SubmissionID(k KeyHash, f Fingerprint) ID {
	var id ID
	copy(id[:16], k[:])
	copy(id[16:24], f[:8])
	id[24] = submissionIndex
	return id
}

// Message is the id of the submission's message to recipient index.
func (id ID) Message(index int) ID {
	id[24] = byte(index)
	return id
}

// Submission is the id of the submission that id belongs to.
func (id ID) Submission() ID {
	id[24] = submissionIndex
	return id
}

// IsSubmission tells a submission's id from a message's.
func (id ID) IsSubmission() bool { return id[24] == submissionIndex }

// Index is the recipient index; it means nothing in a submission's id.
func (id ID) Index() int { return int(id[24]) }

// KeyHash is the part of id under which the ledger keeps the submission.
func (id ID) KeyHash() KeyHash { return KeyHash(id[:16]) }

// Matches says whether id was made from a request with fingerprint f.
func (id ID) Matches(f Fingerprint) bool { return [8]byte(id[16:24]) == [8]byte(f[:8]) }

// String is msg_ or sub_ and 40 characters of lower-case base32.
func (id ID) String() string {
	b, _ := id.AppendText(nil)
	return string(b)
}

// AppendText appends String to b. It never fails.
func (id ID) AppendText(b []byte) ([]byte, error) {
	kind := "msg_"
	if id.IsSubmission() {
		kind = "sub_"
	}
	return idText.AppendEncode(append(b, kind...), id[:]), nil
}

// MarshalText writes String.
func (id ID) MarshalText() ([]byte, error) { return id.AppendText(nil) }

// UnmarshalText reads what MarshalText writes.
func (id *ID) UnmarshalText(b []byte) (err error) {
	*id, err = ParseID(string(b))
	return err
}

// ParseID reads a message's or submission's id, or fails with ErrBadID.
func ParseID(s string) (ID, error) {
	var id ID
	kind, text, _ := strings.Cut(s, "_")
	if len(text) != 40 || kind != "msg" && kind != "sub" {
		return id, ErrBadID
	}
	if n, err := idText.Decode(id[:], []byte(text)); err != nil || n != len(id) {
		return id, ErrBadID
	}
	if id.IsSubmission() != (kind == "sub") || !id.IsSubmission() && id.Index() >= MaxRecipients {
		return id, ErrBadID
	}
	return id, nil
}
