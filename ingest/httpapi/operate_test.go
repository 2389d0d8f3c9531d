package httpapi_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/ingest/httpapi"
	"github.com/stormpost/stormpost/internal/devstack/teststack"
	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/message"
)

func TestMain(m *testing.M) { teststack.Main(m) }

// operated is the API on a real ledger, with the item of each message that was
// submitted.
type operated struct {
	*fixture
	ledger *dedupe.Ledger
}

func newOperated(t *testing.T) *operated {
	l := ledgertest.Open(t, "")
	if id := ledgertest.Tenant(t, l, "one"); id != 1 {
		t.Fatalf("tenant %d", id)
	}
	o := &operated{ledger: l}
	o.fixture = newFixture(t, func(c *httpapi.Config) {
		c.Ledger, c.Providers = l, []string{"smtp", "fcm"}
		c.Keyring = keys{
			"one":      principals["one"],
			"operator": {Tenant: 1, TenantName: "ops", KeyID: 1, Prefix: "k3v9x2ab", Scopes: []keyring.Scope{keyring.Operator}},
		}
		c.Service = ingest.New(l, nowhere{}, ingest.Config{Finder: l})
	})
	return o
}

// nowhere is a publisher that drops everything: the cursor has it all.
type nowhere struct{}

func (nowhere) Publish([]message.Item) {}

// submit makes n messages of tenant one, and returns what asks for them.
func (o *operated) submit(n int) []message.Item {
	o.t.Helper()
	for range n {
		decodeInto[accepted](o.t, o.do("POST", "/v1/emails", "one", goodEmail), 202)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for {
		items, err := o.ledger.Unclaimed(o.t.Context(), message.Lanes()[0], 0, n)
		if err != nil {
			o.t.Fatal(err)
		}
		if len(items) == n {
			return items
		}
		select {
		case <-tick.C:
		case <-deadline:
			o.t.Fatalf("%d of %d are there", len(items), n)
		}
	}
}

func (o *operated) claim(it message.Item, want message.ClaimVerdict) {
	o.t.Helper()
	if c, err := o.ledger.Claim(o.t.Context(), it); err != nil || c.Verdict != want {
		o.t.Fatalf("verdict %d, want %d: %v", c.Verdict, want, err)
	}
}

func (o *operated) doubts(n int) []message.Item {
	o.t.Helper()
	items := o.submit(n)
	for _, it := range items {
		o.claim(it, message.Claimed)
		r := message.Report{Position: it.Position, Attempt: 1, Provider: "smtp", Result: message.Result{Outcome: message.Unknown}}
		if err := o.ledger.Record(o.t.Context(), r); err != nil {
			o.t.Fatal(err)
		}
	}
	return items
}

type decisions struct {
	Matched, Decided int64
	More             bool
	Lanes, Causes    map[string]int64
	Sample           []struct{ ID string }
	By               string
}

func TestDecideDoubtsByFilter(t *testing.T) {
	t.Parallel()
	o := newOperated(t)
	items := o.doubts(12)
	for body, field := range map[string]string{
		`{"decision":"drop","reason":"r"}`:                                         "filter",
		`{"filter":{},"decision":"drop","reason":"r"}`:                             "filter",
		`{"filter":{"lanes":"x"},"decision":"drop","reason":"r"}`:                  "filter.lanes",
		`{"filter":{"lane":"x"},"decision":"drop","reason":"r"}`:                   "filter.lane",
		`{"filter":{"tenant":0},"decision":"drop","reason":"r"}`:                   "filter.tenant",
		`{"filter":{"since":"noon"},"decision":"drop","reason":"r"}`:               "filter.since",
		`{"filter":{"provider":"smtp"},"all":true,"decision":"drop","reason":"r"}`: "all",
		`{"filter":{"provider":"smtp"},"decision":"maybe","reason":"r"}`:           "decision",
		`{"filter":{"provider":"smtp"},"decision":"drop","reason":" "}`:            "reason",
		`{"filter":{"provider":"smtp"},"decision":"drop"}`:                         "reason",
		`{"all":true,"decision":"drop","reason":"r","by":"me"}`:                    "by",
		`{"filter":{"since":"2026-01-02T00:00:00Z","until":"2026-01-01T00:00:00Z"},"reason":"r"` +
			`,"decision":"drop"}`: "filter.until",
	} {
		wantProblem(t, o.do("POST", "/v1/doubts", "operator", body), 422, field)
	}
	body := `{"filter":{"provider":"smtp","lane":"transactional.email","tenant":1},"decision":"drop","reason":"asked for"`
	dry := decodeInto[decisions](t, o.do("POST", "/v1/doubts", "operator", body+`,"dry_run":true}`), 200)
	if dry.Matched != 12 || dry.Decided != 0 || dry.Lanes["transactional.email"] != 12 || dry.Causes["unknown"] != 12 || len(dry.Sample) != 10 || dry.Sample[0].ID != items[0].ID.String() {
		t.Errorf("dry run: %+v", dry)
	}
	if left := decodeInto[list](t, o.do("GET", "/v1/doubts", "operator", ""), 200); len(left.Items) != 12 {
		t.Errorf("a dry run decided: %d are left", len(left.Items))
	}
	got := decodeInto[decisions](t, o.do("POST", "/v1/doubts", "operator", body+`}`), 200)
	if got.Decided != 12 || got.More || got.By != "ops key k3v9x2ab" {
		t.Errorf("decided: %+v", got)
	}
	if left := decodeInto[list](t, o.do("GET", "/v1/doubts", "operator", ""), 200); len(left.Items) != 0 {
		t.Errorf("%d are left", len(left.Items))
	}
	v, err := o.ledger.Message(t.Context(), 0, items[3].ID)
	if err != nil || v.State != message.StateFailed || v.Attempts[0].DecidedBy != "ops key k3v9x2ab" || v.Attempts[0].Because != "asked for" {
		t.Errorf("on record: %+v %v", v, err)
	}
	again := o.do("POST", "/v1/doubts/"+items[3].ID.String(), "operator", `{"decision":"sent","reason":"r"}`)
	if p := wantProblem(t, again, 409); p.Code != "already_decided" {
		t.Errorf("code %s", p.Code)
	}
}

func TestHoldAndRelease(t *testing.T) {
	t.Parallel()
	o := newOperated(t)
	for body, field := range map[string]string{
		`{"reason":"r"}`: "body",
		`{"lane":"trigger.push","tenant":1,"reason":"r"}`:                     "body",
		`{"lane":"fast.email","reason":"r"}`:                                  "lane",
		`{"tenant":77,"reason":"r"}`:                                          "tenant",
		`{"tenant":-1,"reason":"r"}`:                                          "tenant",
		`{"provider":"smpt","reason":"r"}`:                                    "provider",
		`{"tag":"a b","reason":"r"}`:                                          "tag",
		`{"tag":"x","lane":"trigger.push","reason":"r"}`:                      "body",
		`{"tag":"x","tenant":77,"reason":"r"}`:                                "tenant",
		`{"lane":"trigger.push"}`:                                             "reason",
		`{"lane":"trigger.push","reason":"` + strings.Repeat("a", 501) + `"}`: "reason",
	} {
		wantProblem(t, o.do("POST", "/v1/holds", "operator", body), 422, field)
	}
	type hold struct {
		ID               int64
		Lane, By, Reason string
		Released         string `json:"released_by"`
	}
	made := decodeInto[hold](t, o.do("POST", "/v1/holds", "operator", `{"lane":"transactional.email","reason":"r"}`), 200)
	if made.Lane != "transactional.email" || made.By != "ops key k3v9x2ab" || made.Reason != "r" {
		t.Errorf("hold %+v", made)
	}
	if p := wantProblem(t, o.do("POST", "/v1/holds", "operator", `{"lane":"transactional.email","reason":"r"}`), 409); p.Code != "already_held" {
		t.Errorf("code %s", p.Code)
	}
	if all := decodeInto[list](t, o.do("GET", "/v1/holds", "operator", ""), 200); len(all.Items) != 1 || all.Items[0]["lane"] != "transactional.email" {
		t.Errorf("holds: %+v", all)
	}
	it := o.submit(1)[0]        // accepting goes on
	time.Sleep(2 * time.Second) // the stated bound
	o.claim(it, message.HeldBack)
	path := fmt.Sprintf("/v1/holds/%d", made.ID)
	if gone := decodeInto[hold](t, o.do("DELETE", path, "operator", ""), 200); gone.Released != "ops key k3v9x2ab" {
		t.Errorf("released %+v", gone)
	}
	if p := wantProblem(t, o.do("DELETE", path, "operator", ""), 409); p.Code != "not_held" {
		t.Errorf("code %s", p.Code)
	}
	wantProblem(t, o.do("DELETE", "/v1/holds/999", "operator", ""), 404)
	wantProblem(t, o.do("DELETE", "/v1/holds/x", "operator", ""), 422, "id")
	o.claim(it, message.Claimed)

	// A message that is set aside by itself.
	path = "/v1/messages/" + it.ID.String() + "/release"
	wantProblem(t, o.do("POST", path, "operator", `{"reason":""}`), 422, "reason")
	if p := wantProblem(t, o.do("POST", path, "operator", `{"reason":"r"}`), 409); p.Code != "not_held" {
		t.Errorf("code %s", p.Code)
	}
	if err := o.ledger.Hold(context.Background(), message.AttemptKey{Position: it.Position, Attempt: 1}, "poison"); err != nil {
		t.Fatal(err)
	}
	if v := decodeInto[map[string]any](t, o.do("POST", path, "operator", `{"reason":"mended"}`), 200); v["state"] != "waiting" {
		t.Errorf("released: %v", v)
	}
	wantProblem(t, o.do("POST", path, "operator", `{"reason":"r"}`), 409)
}

// The audits of the API agree with each other, on a real ledger.
func TestAuditsOfTheLedger(t *testing.T) {
	t.Parallel()
	o := newOperated(t)
	o.claim(o.submit(5)[0], message.Claimed)
	total := decodeInto[struct {
		Total struct {
			Accepted, Queued, Sending int64
			AddsUp                    bool `json:"adds_up"`
		}
	}](t, o.do("GET", "/v1/audit?lane=transactional.email", "operator", ""), 200)
	if a := total.Total; a.Accepted != 5 || a.Queued != 4 || a.Sending != 1 || !a.AddsUp {
		t.Errorf("audit: %+v", a)
	}
	got := strings.TrimSpace(string(o.do("GET", "/v1/streams/default/audit?from=2&to=4", "one", "").body))
	if want := `{"stream":"default","first":1,"last":5,"from":2,"to":4,"next":0,"missing":[],"states":{"queued":3}}`; got != want {
		t.Errorf("stream: %s, want %s", got, want)
	}
}

type replayed struct {
	ID              int64
	Status, By, Why string
	ToSend          int64 `json:"to_send"`
	Given           int64
	Filter          struct{ Lane, State string }
	Message         string
	LeftOut         map[string]struct {
		Count  int64
		Why    string
		Sample []struct{ ID string }
	} `json:"left_out"`
	Sample []struct{ ID string }
	Next   string
}

func TestReplays(t *testing.T) {
	t.Parallel()
	o := newOperated(t)
	for body, field := range map[string]string{
		`{"reason":"r"}`:             "filter",
		`{"filter":{},"reason":"r"}`: "filter",
		`{"filter":{"lane":"transactional.email"},"all":true,"reason":"r"}`:                       "all",
		`{"filter":{"lane":"fast.email"},"reason":"r"}`:                                           "filter.lane",
		`{"filter":{"lanes":"fast.email"},"reason":"r"}`:                                          "filter.lanes",
		`{"filter":{"state":"sent"},"reason":"r"}`:                                                "filter.state",
		`{"filter":{"state":"expired"},"reason":"r"}`:                                             "filter.state",
		`{"filter":{"state":"gone"},"reason":"r"}`:                                                "filter.state",
		`{"filter":{"provider":"smpt"},"reason":"r"}`:                                             "filter.provider",
		`{"filter":{"tenant":77},"reason":"r"}`:                                                   "filter.tenant",
		`{"filter":{"tenant":77},"dry_run":true}`:                                                 "filter.tenant",
		`{"filter":{"tag":"a b"},"reason":"r"}`:                                                   "filter.tag",
		`{"filter":{"since":"noon"},"reason":"r"}`:                                                "filter.since",
		`{"filter":{"since":"2026-01-02T00:00:00Z","until":"2026-01-01T00:00:00Z"},"reason":"r"}`: "filter.until",
		`{"filter":{"tag":"a"}}`:                                                                  "reason",
		`{"filter":{"tag":"a"},"rate":0,"reason":"r"}`:                                            "rate",
		`{"filter":{"tag":"a"},"rate":10001,"reason":"r"}`:                                        "rate",
		`{"filter":{"tag":"a"},"cursor":"a-b","reason":"r"}`:                                      "cursor",
		`{"filter":{"tag":"a"},"cursor":"x","dry_run":true}`:                                      "cursor",
		`{"filter":{"tag":"a"},"attempt":1,"reason":"r"}`:                                         "attempt",
		`{"id":"msg_a","reason":"r"}`:                                                             "attempt",
		`{"id":"msg_a","attempt":1}`:                                                              "reason",
		`{"id":"msg_a","attempt":1,"filter":{"tag":"a"},"reason":"r"}`:                            "filter",
		`{"id":"msg_a","attempt":1,"dry_run":true,"reason":"r"}`:                                  "dry_run",
	} {
		wantProblem(t, o.do("POST", "/v1/replays", "operator", body), 422, field)
	}
	wantProblem(t, o.do("POST", "/v1/replays", "operator", `{"id":"msg_a","attempt":1,"reason":"r"}`), 404)

	items := o.submit(4)
	for i, outcome := range []message.Outcome{message.Rejected, message.Rejected, message.Sent} {
		o.claim(items[i], message.Claimed)
		if err := o.ledger.Record(t.Context(), message.Report{Position: items[i].Position, Attempt: 1, Provider: "smtp", Result: message.Result{Outcome: outcome}}); err != nil {
			t.Fatal(err)
		}
	}
	dry := decodeInto[replayed](t, o.do("POST", "/v1/replays", "operator", `{"filter":{"lane":"transactional.email"},"dry_run":true}`), 200)
	if dry.ToSend != 2 || dry.LeftOut["sent"].Count != 1 || dry.LeftOut["sent"].Sample[0].ID != items[2].ID.String() || dry.LeftOut["queued"].Count != 1 || dry.Sample[0].ID != items[0].ID.String() || dry.Next != "" || dry.ID != 0 {
		t.Errorf("dry run %+v", dry)
	}
	body := `{"filter":{"lane":"transactional.email","state":"failed"},"reason":"r"}`
	made := decodeInto[replayed](t, o.do("POST", "/v1/replays", "operator", body), 200)
	if made.ID == 0 || made.Status != "counting" || made.By != "ops key k3v9x2ab" || made.Filter.State != "failed" {
		t.Errorf("replay %+v", made)
	}
	if p := wantProblem(t, o.do("POST", "/v1/replays", "operator", `{"all":true,"reason":"r"}`), 409); p.Code != "replay_overlap" || !strings.Contains(p.Detail, fmt.Sprint("/v1/replays/", made.ID)) {
		t.Errorf("overlap: %+v", p)
	}
	path := fmt.Sprint("/v1/replays/", made.ID)
	for _, step := range [][2]string{{"pause", "paused"}, {"resume", "counting"}, {"cancel", "canceled"}} {
		if got := decodeInto[replayed](t, o.do("POST", path+"/"+step[0], "operator", ""), 200); got.Status != step[1] {
			t.Errorf("%s: %+v", step[0], got)
		}
	}
	if p := wantProblem(t, o.do("POST", path+"/resume", "operator", ""), 409); p.Code != "replay_ended" {
		t.Errorf("code %s", p.Code)
	}
	wantProblem(t, o.do("GET", "/v1/replays/999", "operator", ""), 404)
	wantProblem(t, o.do("GET", "/v1/replays/x", "operator", ""), 422, "id")
	wantProblem(t, o.do("GET", "/v1/replays?state=done", "operator", ""), 422, "state")
	if all := decodeInto[list](t, o.do("GET", "/v1/replays", "operator", ""), 200); len(all.Items) != 1 {
		t.Errorf("replays: %+v", all)
	}
	// A sent one, by its id.
	named := fmt.Sprintf(`{"id":%q,"attempt":1,"reason":"asked for"}`, items[2].ID)
	if got := decodeInto[replayed](t, o.do("POST", "/v1/replays", "operator", named), 200); got.Status != "done" || got.Given != 1 || got.Message != items[2].ID.String() {
		t.Errorf("by its id: %+v", got)
	}
	if p := wantProblem(t, o.do("POST", "/v1/replays", "operator", named), 409); p.Code != "not_replayable" || !strings.Contains(p.Detail, "waits for its next attempt") {
		t.Errorf("twice: %+v", p)
	}
}
