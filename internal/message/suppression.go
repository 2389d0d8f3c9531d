package message

import (
	"crypto/sha256"
	"strconv"
	"strings"
	"time"
)

// Suppression is a recipient that messages are refused to at the door.
type Suppression struct {
	ID        int64
	Tenant    int32
	Channel   Channel
	Recipient string // as a message's; an email's in lower case and without a name
	Reason    string // RecipientGone, or complained
	Provider  string // who said so
	At        time.Time
	ClearedBy string
	ClearedAt time.Time // zero while it is on the list
}

// SuppressionDigest names a tenant's recipient of a channel within all
// suppressions. It is the ledger's, too.
func SuppressionDigest(tenant int32, ch Channel, recipient string) [16]byte {
	sum := sha256.Sum256([]byte(strconv.Itoa(int(tenant)) + " " + strconv.Itoa(int(ch)) + " " + SuppressedAs(ch, recipient)))
	return [16]byte(sum[:16])
}

// SuppressedAs is a message's recipient as the list of suppressions has it: of a
// mailbox the address, in lower case as far as it is ASCII. It is the ledger's,
// too.
func SuppressedAs(ch Channel, recipient string) string {
	if ch != ChannelEmail {
		return recipient
	}
	if r := strings.TrimRight(recipient, " "); strings.HasSuffix(r, ">") {
		if i := strings.LastIndexByte(r, '<'); i >= 0 {
			recipient = r[i+1 : len(r)-1]
		}
	}
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, strings.Trim(recipient, " "))
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
