package message

import (
	"crypto/sha256"
	"strconv"
	"time"
)

// Suppression is a recipient that messages are refused to at the door.
type Suppression struct {
	ID        int64
	Tenant    int32
	Channel   Channel
	Recipient string // as a message's
	Reason    string // RecipientGone
	Provider  string // who said so
	At        time.Time
	ClearedBy string
	ClearedAt time.Time // zero while it is on the list
}

// SuppressionDigest names a tenant's recipient of a channel within all
// suppressions. It is the ledger's, too.
func SuppressionDigest(tenant int32, ch Channel, recipient string) [16]byte {
	sum := sha256.Sum256([]byte(strconv.Itoa(int(tenant)) + " " + strconv.Itoa(int(ch)) + " " + recipient))
	return [16]byte(sum[:16])
}

// SuppressionChange is one that came on the list, or went off it.
type SuppressionChange struct {
	Digest [16]byte
	Active bool
}

// SuppressionFilter narrows a list of suppressions. Zero fields don't narrow.
type SuppressionFilter struct {
	Tenant    int32
	Channel   Channel
	Recipient string
	Cursor    string
	Limit     int
}
