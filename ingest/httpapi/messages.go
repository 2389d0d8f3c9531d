package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/message"
)

// page is one page of a list.
type page[T any] struct {
	Items []T    `json:"items" doc:"This page; it may hold fewer than limit before the last one."`
	Next  string `json:"next" doc:"The cursor of the next page, empty on the last one."`
}

type output[T any] struct{ Body T }

type messageInput struct {
	ID string `path:"id" example:"msg_aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryaaa" doc:"A message's id."`
}

// messageParam documents the id of a message in the path of what takes a body.
func messageParam() *huma.Param {
	return &huma.Param{Name: "id", In: "path", Required: true, Example: exampleMessage, Description: "A message's id.", Schema: &huma.Schema{Type: huma.TypeString}}
}

type messagesInput struct {
	Key        string    `query:"idempotency_key" maxLength:"255" doc:"Those submitted under this key."`
	Submission string    `query:"submission" doc:"Those of this submission."`
	Stream     string    `query:"stream" maxLength:"64" doc:"Those of this stream."`
	State      string    `query:"state" enum:"queued,waiting,sending,sent,failed,expired,superseded,canceled,in_doubt,held,journaled" doc:"Those in this state."`
	Class      string    `query:"class" enum:"transactional,trigger,campaign" doc:"Those of this class."`
	Channel    string    `query:"channel" enum:"email,push" doc:"Those of this channel."`
	To         string    `query:"to" maxLength:"4096" doc:"Those to this recipient, as it was given."`
	Tag        string    `query:"tag" maxLength:"64" doc:"Those with this tag."`
	Since      time.Time `query:"since" doc:"Those accepted at this time or later."`
	Cursor     string    `query:"cursor" maxLength:"1024" doc:"A page's next, for the page after it."`
	Limit      int       `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"How many at most."`
	Tenant     int32     `query:"tenant" minimum:"0" doc:"For operators: those of this tenant."`
}

func (a *api) registerMessages() {
	huma.Register(a.huma, a.operation(huma.Operation{
		OperationID: "get-message", Method: http.MethodGet, Path: "/v1/messages/{id}", Tags: []string{"Messages"},
		Summary: "See a message", Security: anyOf(keyring.Read, keyring.Operator),
	}, exampleView(), http.StatusNotFound), a.getMessage)
	huma.Register(a.huma, a.operation(huma.Operation{
		OperationID: "list-messages", Method: http.MethodGet, Path: "/v1/messages", Tags: []string{"Messages"},
		Summary:     "List messages, newest first",
		Description: "Those that the ledger has. What is journaled, or parked, is found by submission alone, or by its own id.",
		Security:    anyOf(keyring.Read, keyring.Operator),
	}, page[messageView]{Items: []messageView{exampleView()}}), a.listMessages)
	huma.Register(a.huma, a.operation(huma.Operation{
		OperationID: "cancel-message", Method: http.MethodDelete, Path: "/v1/messages/{id}", Tags: []string{"Messages"},
		Summary: "Cancel a message that is not handed over yet", Security: anyOf(keyring.Send, keyring.Operator),
	}, exampleView(), http.StatusNotFound, http.StatusConflict), a.cancelMessage)
}

func (a *api) getMessage(ctx context.Context, in *messageInput) (*output[messageView], error) {
	return a.oneMessage(ctx, in.ID, a.seek)
}

// seek is one message from the ledger, or from the journal that it is still in.
// What neither store is known not to have is unavailable, never unknown.
func (a *api) seek(ctx context.Context, tenant int32, id message.ID) (*message.View, error) {
	if a.Journal == nil {
		return a.Ledger.Message(ctx, tenant, id)
	}
	v, err := a.seekOnce(ctx, tenant, id)
	if !errors.Is(err, message.ErrNotFound) {
		return v, err
	}
	if err := a.readJournal(ctx); err != nil {
		return nil, err
	}
	return a.seekOnce(ctx, tenant, id)
}

// readLimit bounds the wait for what other processes have journaled.
const readLimit = 2 * time.Second

// readJournal waits until the journal can tell of all that any process had it keep
// until now.
func (a *api) readJournal(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	if err := a.Journal.Current(ctx, time.Now()); err != nil {
		return fmt.Errorf("%w: the journal can't be read now: %w", message.ErrUnavailable, err)
	}
	return nil
}

// seekOnce asks the journal first: what has left it by then is in the ledger.
func (a *api) seekOnce(ctx context.Context, tenant int32, id message.ID) (*message.View, error) {
	j, known := a.Journal.Find(id)
	if j != nil && tenant != 0 && j.Tenant != tenant {
		return nil, message.ErrNotFound
	}
	if j != nil {
		// There is an answer, so the ledger isn't waited for long.
		limit, cancel := context.WithTimeout(ctx, seekPatience)
		defer cancel()
		ctx = limit
	}
	v, err := a.Ledger.Message(ctx, tenant, id)
	switch {
	case err == nil || !errors.Is(err, message.ErrNotFound) && !errors.Is(err, message.ErrUnavailable):
		return v, err
	case j != nil:
		v := journaledView(j, id)
		return &v, nil
	case !known:
		return nil, fmt.Errorf("%w: the journal can't be read yet", message.ErrUnavailable)
	}
	return nil, err
}

func journaledView(j *message.Journaled, id message.ID) message.View {
	return message.View{ID: id, Tenant: j.Tenant, State: message.StateJournaled, Lane: j.Lane, AcceptedAt: j.AcceptedAt}
}

// search is one page of messages. Of a submission that is still in the journal it
// tells all, if it is asked for by its id or key; other lists are of what the ledger has.
func (a *api) search(ctx context.Context, f message.Filter) (page message.Page[message.View], err error) {
	if a.Journal == nil || f.Submission == (message.ID{}) && f.Key == nil {
		return a.Ledger.Messages(ctx, f)
	}
	page, err = a.searchOnce(ctx, f)
	if err != nil || len(page.Items) > 0 || f.Cursor != "" {
		return page, err
	}
	if err := a.readJournal(ctx); err != nil {
		return page, err
	}
	return a.searchOnce(ctx, f)
}

func (a *api) searchOnce(ctx context.Context, f message.Filter) (page message.Page[message.View], err error) {
	found, known := a.journaled(f) // before the ledger: see seekOnce
	page, err = a.Ledger.Messages(ctx, f)
	if err != nil && !errors.Is(err, message.ErrUnavailable) || len(page.Items) > 0 || f.Cursor != "" {
		return page, err
	}
	for _, j := range found {
		if f.Tenant != 0 && f.Tenant != j.Tenant || f.State != "" && f.State != message.StateJournaled {
			continue
		}
		id := j.ID()
		if f.Submission != (message.ID{}) {
			id = f.Submission
		}
		for i := len(j.Recipients) - 1; i >= 0; i-- {
			page.Items = append(page.Items, journaledView(j, id.Message(i)))
		}
	}
	switch {
	case len(page.Items) > 0:
		return page, nil
	case err == nil && !known:
		err = fmt.Errorf("%w: the journal can't be read yet", message.ErrUnavailable)
	}
	return page, err
}

// journaled is what the journal holds of what f asks for by id or key.
func (a *api) journaled(f message.Filter) (all []*message.Journaled, known bool) {
	if f.Submission == (message.ID{}) {
		return a.Journal.Under(*f.Key)
	}
	j, known := a.Journal.Find(f.Submission)
	if j == nil || f.Key != nil && *f.Key != f.Submission.KeyHash() {
		return nil, known
	}
	return []*message.Journaled{j}, known
}

// seekPatience is how long the ledger may take to tell of a message that the
// journal tells of.
const seekPatience = time.Second

func (a *api) cancelMessage(ctx context.Context, in *messageInput) (*output[messageView], error) {
	return a.oneMessage(ctx, in.ID, a.cancel)
}

// cancel cancels in the ledger alone. What is still in the journal can't be
// canceled before it is entered.
func (a *api) cancel(ctx context.Context, tenant int32, id message.ID) (*message.View, error) {
	v, err := a.Ledger.Cancel(ctx, tenant, id)
	if a.Journal == nil || !errors.Is(err, message.ErrNotFound) {
		return v, err
	}
	if err := a.readJournal(ctx); err != nil {
		return nil, err
	}
	if j, known := a.Journal.Find(id); !known || j != nil && (tenant == 0 || j.Tenant == tenant) {
		return nil, fmt.Errorf("%w: it is journaled, or may be: try again when it is entered", message.ErrUnavailable)
	}
	return a.Ledger.Cancel(ctx, tenant, id) // it may have been entered meanwhile
}

// oneMessage answers with what do makes of a message. An id that can't be, that
// is unknown and that is another tenant's have the same answer.
func (a *api) oneMessage(ctx context.Context, text string, do func(context.Context, int32, message.ID) (*message.View, error)) (*output[messageView], error) {
	id, err := messageID(text)
	if err != nil {
		return nil, a.problem(ctx, err)
	}
	p := principalOf(ctx)
	tenant, err := visible(p, 0)
	if err != nil {
		return nil, a.problem(ctx, err)
	}
	v, err := do(ctx, tenant, id)
	if err != nil {
		return nil, a.problem(ctx, err)
	}
	view, err := detailOf(v, p.Can(keyring.Operator))
	if err != nil {
		return nil, a.problem(ctx, err)
	}
	return &output[messageView]{view}, nil
}

func messageID(text string) (message.ID, error) {
	id, err := message.ParseID(text)
	switch {
	case err != nil:
		return id, message.ErrNotFound
	case id.IsSubmission():
		p := notFound()
		p.Detail = "This is a submission's id. List its messages with GET /v1/messages?submission="
		return id, p
	}
	return id, nil
}

func (a *api) listMessages(ctx context.Context, in *messagesInput) (*output[page[messageView]], error) {
	p := principalOf(ctx)
	filter, err := in.filter(p)
	if err != nil {
		return nil, a.problem(ctx, err)
	}
	found, err := a.search(ctx, filter)
	if err != nil {
		return nil, a.problem(ctx, err)
	}
	out := page[messageView]{Items: make([]messageView, len(found.Items)), Next: found.Next}
	for i := range found.Items {
		out.Items[i] = viewOf(&found.Items[i], p.Can(keyring.Operator))
	}
	return &output[page[messageView]]{out}, nil
}

func (in *messagesInput) filter(p *keyring.Principal) (message.Filter, error) {
	tenant, err := visible(p, in.Tenant)
	if err != nil {
		return message.Filter{}, err
	}
	f := message.Filter{
		Tenant: tenant, Stream: in.Stream, State: message.State(in.State), To: in.To, Tag: in.Tag,
		Since: in.Since, Cursor: in.Cursor, Limit: in.Limit,
	}
	var wrong message.FieldErrors
	if in.Submission != "" {
		if f.Submission, err = message.ParseID(in.Submission); err != nil || !f.Submission.IsSubmission() {
			wrong = append(wrong, message.FieldError{Field: "submission", Problem: "is not a submission's id"})
		}
	}
	if in.Key != "" {
		// A key means something within a tenant alone.
		owner := *p
		if tenant != 0 {
			owner.Tenant = tenant
		}
		if owner.Tenant == 0 {
			wrong = append(wrong, message.FieldError{Field: "idempotency_key", Problem: "needs a tenant"})
		}
		key := ingest.KeyHash(&owner, in.Key)
		f.Key = &key
	}
	if in.Class != "" {
		if f.Class, err = message.ParseClass(in.Class); err != nil {
			wrong = append(wrong, message.FieldError{Field: "class", Problem: err.Error()})
		}
	}
	if in.Channel != "" {
		if f.Channel, err = message.ParseChannel(in.Channel); err != nil {
			wrong = append(wrong, message.FieldError{Field: "channel", Problem: err.Error()})
		}
	}
	if len(wrong) > 0 {
		return f, wrong
	}
	return f, nil
}
