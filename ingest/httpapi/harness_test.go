package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/ingest/httpapi"
	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/message"
)

// store is a ledger in memory: enough of one to tell tenants apart, to answer
// repeats, and to fail.
type store struct {
	told        []message.ProviderEvent
	mu          sync.Mutex
	byKey       map[message.KeyHash]*kept
	next        map[string]int64
	accepted    int
	fail        error
	decided     map[message.ID]message.Decision
	filter      message.Filter // of the last list
	doubtFilter message.DoubtFilter
	items       []message.Item
	holds       []message.Hold
	parked      map[message.Lane]int64

	suppressions []message.Suppression

	panics bool

	failReads error // of one message
}

type kept struct {
	sub     *message.Submission
	receipt message.Receipt
	state   message.State
}

func newStore() *store {
	return &store{byKey: map[message.KeyHash]*kept{}, next: map[string]int64{}, decided: map[message.ID]message.Decision{}}
}

func (s *store) Accept(_ context.Context, sub *message.Submission) (message.Receipt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.panics {
		panic("out of order")
	}
	if s.fail != nil {
		return message.Receipt{}, s.fail
	}
	if k := s.byKey[sub.Key]; k != nil {
		if k.sub.Print != sub.Print {
			return message.Receipt{}, message.ErrKeyReused
		}
		r := k.receipt
		r.Replayed, r.States = true, slices.Repeat([]message.State{k.state}, len(sub.Recipients))
		return r, nil
	}
	s.accepted++
	stream := string(rune(sub.Tenant)) + sub.Stream
	r := message.Receipt{Submission: int64(s.accepted), Sequence: s.next[stream] + 1, Waiting: !sub.SendAt.IsZero()}
	s.next[stream] += int64(len(sub.Recipients))
	s.byKey[sub.Key] = &kept{sub, r, message.StateQueued}
	return r, nil
}

func (s *store) Publish(items []message.Item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.items = append(s.items, items...)
}

func (s *store) view(tenant int32, id message.ID) (*message.View, error) {
	k := s.byKey[id.KeyHash()]
	if k == nil || tenant != 0 && k.sub.Tenant != tenant || !id.Matches(k.sub.Print) || id.Index() >= len(k.sub.Recipients) {
		return nil, message.ErrNotFound
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return &message.View{
		Position: message.PositionOf(k.sub.Lane, k.receipt.Submission, id.Index()),
		ID:       id, Tenant: k.sub.Tenant, State: k.state, Stream: k.sub.Stream, Lane: k.sub.Lane,
		Sequence: k.receipt.Sequence + int64(id.Index()), Recipient: k.sub.Recipients[id.Index()],
		AcceptedAt: at, ExpiresAt: k.sub.ExpiresAt, Content: k.sub.Content,
		Attempts: []message.Attempt{{
			Number: 1, Kind: "send", At: at.Add(time.Second), Outcome: message.Unknown, OutcomeAt: at.Add(2 * time.Second),
			Provider: "relay", Reply: "connection lost",
			Decision: message.DecideResend, DecidedBy: "ops", DecidedAt: at.Add(3 * time.Second), Because: "asked",
		}, {Number: 2, Kind: "cancel", At: at.Add(4 * time.Second)}},
	}, nil
}

func (s *store) Message(_ context.Context, tenant int32, id message.ID) (*message.View, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failReads != nil {
		return nil, s.failReads
	}
	return s.view(tenant, id)
}

func (s *store) Cancel(_ context.Context, tenant int32, id message.ID) (*message.View, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.view(tenant, id)
	if err != nil {
		return nil, err
	}
	if v.State == message.StateSent {
		return nil, message.ErrTooLate
	}
	s.byKey[id.KeyHash()].state = message.StateCanceled
	return s.view(tenant, id)
}

func (s *store) Messages(_ context.Context, f message.Filter) (message.Page[message.View], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.filter = f
	var p message.Page[message.View]
	if s.failReads != nil {
		return p, s.failReads
	}
	for _, k := range s.byKey {
		if f.Submission != (message.ID{}) && f.Submission != k.sub.ID() || f.Key != nil && *f.Key != k.sub.Key {
			continue
		}
		for i := range k.sub.Recipients {
			if v, err := s.view(f.Tenant, k.sub.ID().Message(i)); err == nil {
				p.Items = append(p.Items, *v)
			}
		}
	}
	return p, nil
}

func (s *store) AuditPart(_ context.Context, tenant int32, stream string, _ message.Range) (*message.Audit, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.next[string(rune(tenant))+stream]
	if last == 0 {
		return nil, message.ErrNotFound
	}
	return &message.Audit{Stream: stream, First: 1, Last: last, From: 1, To: last, Missing: []message.Range{{From: 2, To: 3}}}, nil
}

func (s *store) AuditLanes(_ context.Context, lanes []message.Lane, progress func(done, total int64)) ([]message.LaneAudit, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return nil, s.fail
	}
	var all []message.LaneAudit
	for _, lane := range lanes {
		all = append(all, message.LaneAudit{Lane: lane, Accepted: 2, States: map[message.State]int64{message.StateSent: 2}})
		progress(2*int64(len(all)), 2*int64(len(lanes)))
	}
	return all, nil
}

func (s *store) Parked(context.Context) (map[message.Lane]int64, error) { return s.parked, s.fail }

func (s *store) Lanes(context.Context) ([]message.LaneView, error) {
	return []message.LaneView{{Lane: message.Lanes()[0], Depth: 4, ETA: -1}, {Lane: message.Lanes()[1], Journaled: -1, ETA: -1}}, nil
}

func (s *store) Doubts(_ context.Context, cursor string, limit int) (message.Page[message.Doubt], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var p message.Page[message.Doubt]
	for _, k := range s.byKey {
		v, _ := s.view(0, k.sub.ID().Message(0))
		p.Items = append(p.Items, message.Doubt{View: *v, Attempt: 1, Cause: "unknown"})
	}
	return p, nil
}

func (s *store) Decide(_ context.Context, id message.ID, attempt int, d message.Decision, _, _ string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.view(0, id); err != nil {
		return err
	}
	if s.decided[id] != "" {
		return message.ErrDecided
	}
	if attempt > 1 {
		return message.FieldErrors{{Field: "attempt", Problem: "is not in doubt: attempt 1 is"}}
	}
	s.decided[id] = d
	return nil
}

func (s *store) CountDoubts(ctx context.Context, f message.DoubtFilter) (*message.DoubtCount, error) {
	s.doubtFilter = f
	p, err := s.Doubts(ctx, "", 10)
	return &message.DoubtCount{Matched: int64(len(p.Items)), Lanes: map[message.Lane]int64{message.Lanes()[0]: int64(len(p.Items))}, Sample: p.Items}, err
}

func (s *store) DecideMany(ctx context.Context, f message.DoubtFilter, d message.Decision, by, reason string) (n int64, more bool, err error) {
	p, _ := s.Doubts(ctx, "", 10)
	for _, doubt := range p.Items {
		if s.Decide(ctx, doubt.ID, 0, d, by, reason) == nil {
			n++
		}
	}
	return n, false, nil
}

func (s *store) AddHold(_ context.Context, h message.Hold) (message.Hold, error) {
	for _, other := range s.holds {
		if other.Lane == h.Lane && other.Tenant == h.Tenant && other.Provider == h.Provider && other.Tag == h.Tag {
			return h, message.ErrHeld
		}
	}
	h.ID = int64(len(s.holds)) + 1
	s.holds = append(s.holds, h)
	return h, nil
}

func (s *store) Tell(_ context.Context, events []message.ProviderEvent) error {
	s.told = append(s.told, events...)
	return nil
}

func (s *store) Holds(context.Context) ([]message.Hold, error) { return s.holds, nil }

func (s *store) ReleaseHold(_ context.Context, id int64, by string) (message.Hold, error) {
	for i, h := range s.holds {
		if h.ID == id && h.ReleasedBy == "" {
			s.holds[i].ReleasedBy = by
			return s.holds[i], nil
		}
		if h.ID == id {
			return h, message.ErrNotHeld
		}
	}
	return message.Hold{}, message.ErrNotFound
}

func (s *store) ReleaseMessage(ctx context.Context, id message.ID, _, _ string) (*message.View, error) {
	v, err := s.Message(ctx, 0, id)
	if err == nil && v.State != message.StateHeld {
		err = message.ErrNotHeld
	}
	return v, err
}

func (s *store) LookReplay(context.Context, message.ReplayFilter, string) (*message.ReplayLook, error) {
	return &message.ReplayLook{}, nil
}

func (s *store) AddReplay(_ context.Context, r message.Replay) (message.Replay, error) { return r, nil }

func (s *store) ReplayMessage(context.Context, message.ID, int, string, string) (message.Replay, error) {
	return message.Replay{}, message.ErrNotFound
}

func (s *store) Replays(context.Context, string, int) (p message.Page[message.Replay], err error) {
	return p, nil
}

func (s *store) Replay(context.Context, int64) (message.Replay, error) {
	return message.Replay{}, message.ErrNotFound
}

func (s *store) TurnReplay(context.Context, int64, message.ReplayStatus, string) (message.Replay, error) {
	return message.Replay{}, message.ErrNotFound
}

func (s *store) Suppressions(_ context.Context, f message.SuppressionFilter) (message.Page[message.Suppression], error) {
	var p message.Page[message.Suppression]
	for _, x := range s.suppressions {
		if f.Tenant == 0 || f.Tenant == x.Tenant {
			p.Items = append(p.Items, x)
		}
	}
	return p, nil
}

func (s *store) ClearSuppression(_ context.Context, tenant int32, id int64, by string) (message.Suppression, error) {
	for i, x := range s.suppressions {
		if x.ID == id && (tenant == 0 || tenant == x.Tenant) {
			s.suppressions = append(s.suppressions[:i], s.suppressions[i+1:]...)
			x.ClearedBy = by
			return x, nil
		}
	}
	return message.Suppression{}, message.ErrNotFound
}

func (s *store) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted
}

// keys verifies the keys of tests: a name for a principal.
type keys map[string]*keyring.Principal

func (k keys) Verify(text string) (*keyring.Principal, error) {
	if p := k[text]; p != nil {
		return p, nil
	}
	return nil, keyring.ErrUnauthorized
}

var principals = keys{
	"one":      {Tenant: 1, TenantName: "one", KeyID: 11, Domains: []string{"example.com"}, Scopes: []keyring.Scope{keyring.Send, keyring.Read}},
	"two":      {Tenant: 2, TenantName: "two", KeyID: 21, Domains: []string{"example.com"}, Scopes: []keyring.Scope{keyring.Send, keyring.Read}},
	"sender":   {Tenant: 1, TenantName: "one", KeyID: 12, Domains: []string{"example.com"}, Scopes: []keyring.Scope{keyring.Send}},
	"reader":   {Tenant: 1, TenantName: "one", KeyID: 13, Scopes: []keyring.Scope{keyring.Read}},
	"operator": {TenantName: "", KeyID: 1, Scopes: []keyring.Scope{keyring.Operator}},
	// A key for everything but of no tenant: there is nobody to send for.
	"rootless": {KeyID: 2, Domains: []string{"*"}, Scopes: []keyring.Scope{keyring.Send, keyring.Operator}},
	"tester":   {Tenant: 1, TenantName: "one", KeyID: 14, Test: true, Domains: []string{"*"}, Scopes: []keyring.Scope{keyring.Send, keyring.Read}},
}

type fixture struct {
	*store
	handler http.Handler
	now     time.Time
	t       testing.TB
}

func newFixture(t testing.TB, change ...func(*httpapi.Config)) *fixture {
	f := &fixture{store: newStore(), now: time.Now(), t: t}
	c := httpapi.Config{
		Service: ingest.New(f.store, f.store, ingest.Config{Finder: f.store, Now: func() time.Time { return f.now }}),
		Ledger:  f.store,
		Keyring: principals,
	}
	for _, ch := range change {
		ch(&c)
	}
	f.handler = httpapi.New(c)
	return f
}

type answer struct {
	*http.Response
	body []byte
}

// do asks with a key, unless it is empty. Headers are pairs.
func (f *fixture) do(method, path, key, body string, headers ...string) answer {
	f.t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if key != "" {
		r.Header.Set("Authorization", "Bearer "+key)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	f.handler.ServeHTTP(w, r)
	res := w.Result()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	if res.Header.Get("X-Request-Id") == "" {
		f.t.Errorf("%s %s: no X-Request-Id", method, path)
	}
	return answer{res, b}
}

type problem struct {
	Type, Title, Code, Detail string
	Status                    int
	Errors                    []struct{ Field, Message string }
}

// wantProblem checks that a is problem details with the status and the fields.
func wantProblem(t testing.TB, a answer, status int, fields ...string) problem {
	t.Helper()
	var p problem
	if a.StatusCode != status || a.Header.Get("Content-Type") != "application/problem+json" {
		t.Fatalf("status %d, type %q, want %d and problem details; body %.300s", a.StatusCode, a.Header.Get("Content-Type"), status, a.body)
	}
	d := json.NewDecoder(bytes.NewReader(a.body))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		t.Fatalf("problem: %v in %s", err, a.body)
	}
	if p.Status != status || p.Code == "" || p.Title == "" || p.Detail == "" || p.Type != "about:blank" {
		t.Errorf("problem is incomplete: %s", a.body)
	}
	for _, want := range fields {
		found := false
		for _, e := range p.Errors {
			found = found || e.Field == want && e.Message != ""
		}
		if !found {
			t.Errorf("no error names %q: %s", want, a.body)
		}
	}
	return p
}

func decodeInto[T any](t testing.TB, a answer, status int) (v T) {
	t.Helper()
	if a.StatusCode != status {
		t.Fatalf("status %d, want %d: %s", a.StatusCode, status, a.body)
	}
	if err := json.Unmarshal(a.body, &v); err != nil {
		t.Fatalf("%v in %s", err, a.body)
	}
	return v
}

type accepted struct {
	ID       string
	Messages []struct {
		ID, To, State, Stream string
		Sequence              int64
	}
}

const goodEmail = `{"from":"A <a@example.com>","to":["b@example.net"],"subject":"s","text":"t"}`
const goodPush = `{"platform":"fcm","to":"token-1","data":{"k":"v"}}`
