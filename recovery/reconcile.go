package recovery

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// Books is a ledger that was rolled back, with the right to reconcile it.
type Books interface {
	// Raise sets positions and the numbers of streams beyond what was given out.
	Raise(ctx context.Context, top int64, numbers map[message.StreamOf]int64) error
	// Unknown is those of keys that there is no submission under.
	Unknown(ctx context.Context, keys []message.KeyHash) (map[message.KeyHash]bool, error)
	// Reenter puts back those that are not known. message.ErrNotFound: one of them
	// is of a tenant that is not known.
	Reenter(ctx context.Context, lost []message.Lost) (map[message.KeyHash]message.Reentered, error)
	// Retrace enters what is known to have happened, and says how much of it was new.
	Retrace(ctx context.Context, steps []message.Step) (int, error)
	// Remember keeps what is known of messages that nobody can enter.
	Remember(ctx context.Context, steps []message.Step) error
	// Find is where messages are, by id.
	Find(ctx context.Context, ids []message.ID) (map[message.ID]message.Position, error)
	Enter(ctx context.Context, j message.Journaled) (message.Receipt, error)
	ParkWhole(ctx context.Context, p message.Parked) error
	// End lets the ledger be used again.
	End(ctx context.Context, by string) error
}

// Evidence is what Kafka has, from a time on, and up to where it was when it
// was asked.
type Evidence struct {
	Lanes    func(ctx context.Context, from time.Time, use func(r Witness) error) error
	Journals func(ctx context.Context, from time.Time, use func(j Kept) error) error
	Trail    func(ctx context.Context, from time.Time, use func(message.Step) error) error
}

// Witness is a lane's record.
type Witness struct {
	message.Item
	Handled bool // its offset is committed
	Source  string
	Raw     []byte
	Bad     error // it is no message of ours
}

// Kept is a journal's record.
type Kept struct {
	message.Journaled
	Source string
	Value  []byte
}

// ReconcileConfig is what a reconciliation works with.
type ReconcileConfig struct {
	Books    Books
	Evidence Evidence
	From     time.Time // what is older, the ledger has
	Journals time.Time // likewise, of the journals' records, which may be entered long after they were written; zero: From
	By       string
	DryRun   bool
	// Progress is told, often, what is done and how far it is.
	Progress func(step string, done int64)
}

// Reconciled is what a reconciliation did, or with DryRun would do, in
// messages.
type Reconciled struct {
	Records   int64 `json:"records"`   // of lanes that were read
	Told      int64 `json:"told"`      // whose attempts the trail tells of
	Lost      int64 `json:"lost"`      // that the ledger had lost and has again
	Sent      int64 `json:"sent"`      // of these, certainly sent
	Ended     int64 `json:"ended"`     // otherwise ended: rejected or canceled
	InDoubt   int64 `json:"in_doubt"`  // handed over, perhaps
	ToSend    int64 `json:"to_send"`   // never handed over, or certainly not taken
	Retraced  int64 `json:"retraced"`  // attempts that the ledger had lost and has again
	Journaled int64 `json:"journaled"` // lost submissions entered from the journals
	Parked    int64 `json:"parked"`    // records that could not be entered; see parked
	Top       int64 `json:"top"`       // the highest submission number that Kafka knows
}

const (
	reconcileBatch = 500
	// reconcileBytes bounds the content of a batch of journaled submissions.
	reconcileBytes = 16 << 20
	// mostTold bounds the trail in memory, some 4 GB.
	mostTrail = 20_000_000
)

// Reconcile tells a rolled-back ledger what Kafka knows. Running it again after
// it broke off does the rest: each batch is whole, and known the next time.
//
// What the trail tells of a message is entered as it is told. Without it a record
// whose offset is committed was claimed by somebody, so it may have been handed
// over: it is entered in doubt. One whose offset is not committed was not, and is
// sent; a claim is told to Kafka before its offset counts as finished.
func Reconcile(ctx context.Context, cfg ReconcileConfig) (*Reconciled, error) {
	r := &reconcile{ReconcileConfig: cfg, told: make(map[message.ID]message.Step), unsure: make(map[message.ID]int), numbers: make(map[message.StreamOf]int64), would: make(map[message.KeyHash]bool)}
	if r.Progress == nil {
		r.Progress = func(string, int64) {}
	}
	for _, step := range []func(context.Context) error{r.readTrail, r.survey, r.raise, r.reenter, r.journals, r.retraceRest} {
		if err := step(ctx); err != nil {
			return &r.sum, fmt.Errorf("reconcile: %w", err)
		}
	}
	if cfg.DryRun {
		return &r.sum, nil
	}
	return &r.sum, cfg.Books.End(ctx, cfg.By)
}

type reconcile struct {
	ReconcileConfig
	sum     Reconciled
	told    map[message.ID]message.Step // the last of each message
	unsure  map[message.ID]int          // the last attempt whose answer was lost, of those that have one
	numbers map[message.StreamOf]int64
	seen    int64
	would   map[message.KeyHash]bool // what a dry run would have entered from the lanes
}

func (r *reconcile) readTrail(ctx context.Context) error {
	err := r.Evidence.Trail(ctx, r.From, func(s message.Step) error {
		if was, ok := r.told[s.ID]; !ok || s.After(was) {
			r.told[s.ID] = s
		}
		if s.Kind == message.StepKind(message.Unknown) {
			r.unsure[s.ID] = max(r.unsure[s.ID], s.Attempt)
		}
		if len(r.told) > mostTrail {
			return fmt.Errorf("the trail tells of more than %d messages: give a later --since", mostTrail)
		}
		if n := int64(len(r.told)); n%1000 == 0 {
			r.Progress("reading the trail of attempts", n)
		}
		return nil
	})
	r.sum.Told = int64(len(r.told))
	for id, attempt := range r.unsure {
		// It was sent again since, and wasn't taken then. Nobody can tell any more who
		// decided that: where a provider absorbs repeats, no other may get it.
		if s := r.told[id]; attempt < s.Attempt && (s.Kind == message.StepKind(message.Deferred) || s.Kind == message.StepKind(message.Returned)) {
			s.Kind, s.Code = message.StepKind(message.Unknown), "reconciled"
			r.told[id] = s
		}
	}
	return err
}

// survey finds what was given out.
func (r *reconcile) survey(ctx context.Context) error {
	return r.Evidence.Lanes(ctx, r.From, func(w Witness) error {
		if r.seen++; r.seen%1000 == 0 {
			r.Progress("looking through the lanes", r.seen)
		}
		if w.Bad != nil {
			return nil
		}
		r.sum.Top = max(r.sum.Top, w.Position.Submission())
		if w.Origin == nil || len(w.Content) == 0 || w.Origin.Sequence <= 0 {
			return nil
		}
		c, err := message.DecodeContent(w.Content)
		if err != nil {
			return nil
		}
		s := message.StreamOf{Tenant: w.Origin.Tenant, Name: c.Stream()}
		r.numbers[s] = max(r.numbers[s], w.Origin.Sequence)
		return nil
	})
}

func (r *reconcile) raise(ctx context.Context) error {
	if r.DryRun {
		return nil
	}
	for _, s := range r.told {
		r.sum.Top = max(r.sum.Top, s.Position.Submission())
	}
	return r.Books.Raise(ctx, r.sum.Top, r.numbers)
}

func (r *reconcile) reenter(ctx context.Context) error {
	var batch []Witness
	err := r.Evidence.Lanes(ctx, r.From, func(w Witness) error {
		if r.sum.Records++; r.sum.Records%1000 == 0 {
			r.Progress("entering what was lost", r.sum.Records)
		}
		if w.Bad != nil { // it is parked already, or will be
			return nil
		}
		if batch = append(batch, w); len(batch) < reconcileBatch {
			return nil
		}
		full := batch
		batch = nil
		return r.take(ctx, full)
	})
	if err != nil {
		return err
	}
	return r.take(ctx, batch)
}

// take enters those of a batch that the ledger has lost, and what became of
// all of them.
func (r *reconcile) take(ctx context.Context, batch []Witness) error {
	if len(batch) == 0 {
		return nil
	}
	keys := make([]message.KeyHash, len(batch))
	for i, w := range batch {
		keys[i] = w.ID.KeyHash()
	}
	unknown, err := r.Books.Unknown(ctx, keys)
	if err != nil {
		return err
	}
	var lost []message.Lost
	owner := make(map[message.KeyHash]Witness)
	for _, w := range batch {
		k := w.ID.KeyHash()
		if _, have := owner[k]; !unknown[k] || have {
			continue
		}
		l, err := restore(w)
		if err != nil {
			if err := r.park(ctx, w, err.Error()); err != nil {
				return err
			}
			continue
		}
		owner[k] = w
		lost = append(lost, l)
	}
	if r.DryRun {
		for k := range owner {
			r.would[k] = true
		}
		r.count(batch, unknown, nil)
		return nil
	}
	placed, err := r.place(ctx, lost, owner)
	if err != nil {
		return err
	}
	var steps []message.Step
	var ids []message.ID
	for _, w := range batch {
		if s, tell := r.step(w); tell {
			steps, ids = append(steps, s), append(ids, w.ID)
		}
	}
	// They may be elsewhere than their records say, also by an earlier run's doing.
	found, err := r.Books.Find(ctx, ids)
	if err != nil {
		return err
	}
	there := steps[:0]
	for _, s := range steps {
		if at, ok := found[s.ID]; ok {
			s.Position = at
			there = append(there, s)
		}
	}
	r.count(batch, unknown, placed)
	return r.retrace(ctx, there)
}

// place reenters, one by one where a batch names a tenant that is lost.
func (r *reconcile) place(ctx context.Context, lost []message.Lost, owner map[message.KeyHash]Witness) (map[message.KeyHash]message.Reentered, error) {
	if len(lost) == 0 {
		return nil, nil
	}
	placed, err := r.Books.Reenter(ctx, lost)
	switch {
	case !errors.Is(err, message.ErrNotFound):
		return placed, err
	case len(lost) == 1:
		return nil, r.park(ctx, owner[lost[0].Key], err.Error())
	}
	placed = make(map[message.KeyHash]message.Reentered)
	for _, l := range lost {
		one, err := r.place(ctx, []message.Lost{l}, owner)
		if err != nil {
			return nil, err
		}
		for k, at := range one {
			placed[k] = at
		}
	}
	return placed, nil
}

func (r *reconcile) park(ctx context.Context, w Witness, why string) error {
	r.sum.Parked++
	if r.DryRun {
		return nil
	}
	return r.Books.ParkWhole(ctx, message.Parked{Source: w.Source, Raw: w.Raw, Reason: "lost by a rollback, and not to be entered: " + why})
}

// step is what is known to have become of a record's message, if anything.
func (r *reconcile) step(w Witness) (message.Step, bool) {
	if s, ok := r.told[w.ID]; ok {
		s.Position = w.Position
		return s, true
	}
	if !w.Handled || w.Origin != nil && !w.Origin.ExpiresAt.After(time.Now()) { // its next claim ends it
		return message.Step{}, false
	}
	return message.Step{Position: w.Position, ID: w.ID, Attempt: w.Attempt, Kind: message.StepClaimed, At: time.Now()}, true
}

// count adds those that were lost to the sum, by what is known of them.
func (r *reconcile) count(batch []Witness, unknown map[message.KeyHash]bool, placed map[message.KeyHash]message.Reentered) {
	done := make(map[message.ID]bool, len(batch))
	for _, w := range batch {
		if !unknown[w.ID.KeyHash()] || done[w.ID] || !r.DryRun && !placed[w.ID.KeyHash()].Fresh {
			continue
		}
		done[w.ID] = true
		r.sum.Lost++
		s, ok := r.step(w)
		switch {
		case ok && s.Kind == message.StepKind(message.Sent):
			r.sum.Sent++
		case ok && (s.Kind == message.StepKind(message.Rejected) || s.Kind == message.StepCanceled):
			r.sum.Ended++
		case ok && (s.Kind == message.StepClaimed || s.Kind == message.StepKind(message.Unknown)):
			r.sum.InDoubt++
		default:
			r.sum.ToSend++
		}
	}
}

func (r *reconcile) retrace(ctx context.Context, steps []message.Step) error {
	if len(steps) == 0 || r.DryRun {
		return nil
	}
	n, err := r.Books.Retrace(ctx, steps)
	r.sum.Retraced += int64(n)
	return err
}

// journals enters what the ledger once had from a journal and lost.
func (r *reconcile) journals(ctx context.Context) error {
	var n int64
	var batch []Kept
	size := 0
	from := r.Journals
	if from.IsZero() {
		from = r.From
	}
	err := r.Evidence.Journals(ctx, from, func(j Kept) error {
		if n++; n%100 == 0 {
			r.Progress("looking through the journals", n)
		}
		batch, size = append(batch, j), size+len(j.Value)
		if len(batch) < reconcileBatch && size < reconcileBytes {
			return nil
		}
		full := batch
		batch, size = nil, 0
		return r.keep(ctx, full)
	})
	if err != nil {
		return err
	}
	return r.keep(ctx, batch)
}

// keep enters those of a batch that the ledger has lost.
func (r *reconcile) keep(ctx context.Context, batch []Kept) error {
	keys, ids := make([]message.KeyHash, len(batch)), make([]message.ID, len(batch))
	for i, j := range batch {
		keys[i], ids[i] = j.Key, j.ID().Message(0)
	}
	unknown, err := r.Books.Unknown(ctx, keys)
	if err != nil {
		return err
	}
	found, err := r.Books.Find(ctx, ids)
	if err != nil {
		return err
	}
	for i, j := range batch {
		if unknown[j.Key] && !r.would[j.Key] {
			r.sum.Journaled++
			unknown[j.Key] = false // it may come once more
		}
		if _, ok := found[ids[i]]; ok || r.DryRun {
			continue
		}
		if r.tells(j.Journaled) { // it was sent, or is over: it doesn't make way for a repeat
			j.RepeatsSince = time.Time{}
		}
		_, err := r.Books.Enter(ctx, j.Journaled) // its own key may be another request's
		if err != nil && !errors.Is(err, message.ErrUnavailable) && ctx.Err() == nil {
			r.sum.Parked++
			err = r.Books.ParkWhole(ctx, j.Parked(j.Source, j.Value, "lost by a rollback, and not to be entered: "+err.Error()))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// tells says whether the trail tells of a submission.
func (r *reconcile) tells(j message.Journaled) bool {
	for i := range j.Recipients {
		if _, ok := r.told[j.ID().Message(i)]; ok {
			return true
		}
	}
	return false
}

// retraceRest enters what is told of messages wherever they are: their records
// may be older than what was read, or they came out of a journal. Some are nowhere:
// they were in the ledger alone, and whoever has them may submit them again.
func (r *reconcile) retraceRest(ctx context.Context) error {
	var ids []message.ID
	var n int64
	flush := func() error {
		if len(ids) == 0 {
			return nil
		}
		found, err := r.Books.Find(ctx, ids)
		if err != nil {
			return err
		}
		steps := make([]message.Step, 0, len(found))
		var gone []message.Step
		for _, id := range ids {
			s := r.told[id]
			at, ok := found[id]
			if !ok {
				gone = append(gone, s)
				continue
			}
			s.Position = at
			steps = append(steps, s)
		}
		ids = ids[:0]
		if err := r.Books.Remember(ctx, gone); err != nil {
			return err
		}
		return r.retrace(ctx, steps)
	}
	if r.DryRun {
		return nil
	}
	for id := range r.told {
		if n++; n%1000 == 0 {
			r.Progress("entering what became of attempts", n)
		}
		if ids = append(ids, id); len(ids) == reconcileBatch {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// restore makes a submission of a record.
func restore(w Witness) (message.Lost, error) {
	o := w.Origin
	switch {
	case len(w.Content) == 0:
		return message.Lost{}, errors.New("its content was in the ledger alone")
	case o == nil:
		return message.Lost{}, errors.New("its record does not say whose it is")
	}
	s, err := message.Restore(o.Tenant, w.ID.KeyHash(), w.Content, o.ExpiresAt, o.Test, w.Trace)
	if err != nil {
		return message.Lost{}, err
	}
	if s.Lane != w.Position.Lane() || w.Position.Index() >= len(s.Recipients) {
		return message.Lost{}, errors.New("its position is of another message")
	}
	l := message.Lost{Journaled: message.Journaled{Submission: s, AcceptedAt: o.AcceptedAt}, Submission: w.Position.Submission()}
	if o.Sequence > int64(w.Position.Index()) {
		l.First = o.Sequence - int64(w.Position.Index())
	}
	return l, nil
}
