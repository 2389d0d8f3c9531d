package message

import "fmt"

// MaxRecipients is how many messages one submission may fan out into. A
// Position has room for 64.
const MaxRecipients = 50

const (
	indexBits = 6
	laneShift = 57
	// MaxSubmission is the greatest submission number that a Position can hold.
	MaxSubmission = 1<<(laneShift-indexBits) - 1
)

// Position names one message in the ledger: bit 62 to 57 its lane, then the
// number of its submission (one sequence for all lanes), then its recipient's
// index. So the messages of a lane are one range, ascending in order of
// acceptance, and every table that is keyed by Position grows at the edge.
type Position int64

// PositionOf is the position of a submission's recipient.
func PositionOf(l Lane, submission int64, index int) Position {
	return Position(l.Code()<<laneShift | submission<<indexBits | int64(index))
}

// Lane is the lane that p belongs to.
func (p Position) Lane() Lane { return LaneOf(int64(p) >> laneShift) }

// Submission is the submission number in p.
func (p Position) Submission() int64 { return int64(p) >> indexBits & MaxSubmission }

// Index is the recipient's index in the submission: to, cc, then bcc.
func (p Position) Index() int { return int(p & (1<<indexBits - 1)) }

// Content is the position of the submission's first message, under which the
// content that its messages share is kept.
func (p Position) Content() Position { return p &^ (1<<indexBits - 1) }

func (p Position) String() string {
	return fmt.Sprintf("%s/%d/%d", p.Lane(), p.Submission(), p.Index())
}
