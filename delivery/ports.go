package delivery

import (
	"context"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// Ledger is what delivery needs of the ledger. Claim and Record gather calls
// into batches, separately for each class, and are safe for concurrent use.
type Ledger interface {
	// Claim asks for the attempt that it names, and returns only when it knows:
	// a batch whose commit is unknown is asked again, with the same tokens,
	// until the ledger answers. An error means that the attempt is certainly not
	// this worker's and the item is unfinished (ctx ended before the ledger was
	// asked, or the ledger was closed). Only with message.Claimed may the
	// message be handed over; with any other verdict, except message.TooEarly
	// for which the item is dropped all the same, and message.HeldBack, after
	// which it is asked for again, the item is finished.
	Claim(ctx context.Context, it message.Item) (Claim, error)
	// Record makes the end of a claimed attempt durable, retrying until it is;
	// an error means that ctx ended first, and the attempt stays open.
	Record(ctx context.Context, r message.Report) error
	// Hold sets a message that was not handed over aside, with a reason.
	Hold(ctx context.Context, k message.AttemptKey, reason string) error
	// Postpone sets aside what was not attempted: it is due again wait from now,
	// or when its life ends. It is false, and nothing was done, if an attempt was
	// made, its life is over, or there is no such message or leave.
	Postpone(ctx context.Context, it message.Item, wait time.Duration) (bool, error)
	// Park keeps a record that is no message of ours, with its bytes and why.
	Park(ctx context.Context, source string, raw []byte, reason string) error

	// Unclaimed is the oldest messages of a lane that nobody claimed, with
	// content, at most limit, from the lane's cursor on. What comes behind 8 MiB of it
	// has none. It leaves out what was accepted less than age ago;
	// at age 0 nothing that is there, though others may appear below it.
	Unclaimed(ctx context.Context, l message.Lane, age time.Duration, limit int) ([]message.Item, error)
	// Due is what waits in the ledger and is due, oldest first, likewise.
	Due(ctx context.Context, l message.Lane, limit int) ([]message.Item, error)
	// Fair is of what Due and Unclaimed would bring, at any age, a few of each
	// tenant's oldest: the first of each, then the second of each, and so on.
	// Of more tenants than one call looks at, the next goes on with the others.
	// It brings nothing while only one tenant has something to go.
	Fair(ctx context.Context, l message.Lane, limit int) ([]message.Item, error)
	// TenantName is the name of a tenant, by its number; empty if there is none.
	TenantName(ctx context.Context, id int32) (string, error)
	// Content is the canonical content of a message whose record didn't carry it.
	Content(ctx context.Context, p message.Position) ([]byte, error)
	// Beat tells that this worker lives, and which attempts it has open. giveUp
	// is how long after its claim an attempt of this worker may still end by
	// itself: the last check's limit plus the greatest reply limit.
	Beat(ctx context.Context, open []message.AttemptKey, giveUp time.Duration) error
}

// Claim is the ledger's answer to Ledger.Claim.
type Claim = message.Claim
