package httpapi_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/ingest/httpapi"
	"github.com/stormpost/stormpost/internal/message"
)

func TestSubmit(t *testing.T) {
	f := newFixture(t)
	a := f.do("POST", "/v1/emails", "one", `{"from":"a@example.com","to":["b@example.net","<c@example.net>"],"cc":["d@example.net"],`+
		`"bcc":null,"text":"t","stream":"s1"}`, "Idempotency-Key", "k")
	got := decodeInto[accepted](t, a, http.StatusAccepted)
	if len(got.Messages) != 3 || got.Messages[1].To != "<c@example.net>" || got.Messages[2].Sequence != 3 ||
		got.Messages[0].State != "queued" || got.Messages[0].Stream != "s1" || got.ID[:4] != "sub_" || got.Messages[0].ID[:4] != "msg_" {
		t.Errorf("answer: %s", a.body)
	}
	if len(f.items) != 3 || f.items[2].Attempt != 1 || f.items[2].Position.Index() != 2 || f.items[2].ID.String() != got.Messages[2].ID {
		t.Errorf("items: %+v", f.items)
	}
	push := decodeInto[accepted](t, f.do("POST", "/v1/pushes", "one", goodPush), http.StatusAccepted)
	if push.Messages[0].To != "token-1" || push.Messages[0].Stream != "default" {
		t.Errorf("push: %+v", push)
	}
	topic := decodeInto[accepted](t, f.do("POST", "/v1/pushes", "one", `{"platform":"fcm","to":{"topic":"news"},"data":{"k":"v"}}`), http.StatusAccepted)
	if topic.Messages[0].To != "/topics/news" {
		t.Errorf("topic: %+v", topic)
	}
}

func TestScheduledIsNotPublished(t *testing.T) {
	f := newFixture(t)
	body := fmt.Sprintf(`{"from":"a@example.com","to":["b@example.net"],"text":"t","send_at":%q}`, f.now.Add(time.Hour).Format(time.RFC3339))
	got := decodeInto[accepted](t, f.do("POST", "/v1/emails", "one", body), http.StatusAccepted)
	if got.Messages[0].State != "waiting" || len(f.items) != 0 {
		t.Errorf("state %s, %d items published", got.Messages[0].State, len(f.items))
	}
}

func TestRepeatedKey(t *testing.T) {
	f := newFixture(t)
	first := f.do("POST", "/v1/emails", "one", goodEmail, "Idempotency-Key", "k")
	decodeInto[accepted](t, first, http.StatusAccepted)
	again := f.do("POST", "/v1/emails", "one", " "+goodEmail+"\n", "Idempotency-Key", "k")
	if string(again.body) != string(first.body) || again.StatusCode != 200 || again.Header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("replay: %d %s, first %s", again.StatusCode, again.body, first.body)
	}
	other := f.do("POST", "/v1/emails", "one", `{"from":"a@example.com","to":["b@example.net"],"text":"other"}`, "Idempotency-Key", "k")
	if p := wantProblem(t, other, 422, "Idempotency-Key"); p.Code != "idempotency_key_reused" {
		t.Errorf("code %s", p.Code)
	}
	// Another tenant's keys, and those of test mode, are keys of their own.
	decodeInto[accepted](t, f.do("POST", "/v1/emails", "two", goodEmail, "Idempotency-Key", "k"), http.StatusAccepted)
	decodeInto[accepted](t, f.do("POST", "/v1/emails", "tester", goodEmail, "Idempotency-Key", "k"), http.StatusAccepted)
	if len(f.items) != 3 {
		t.Errorf("%d items, want 3", len(f.items))
	}
	// The replay tells what became of it.
	for _, k := range f.byKey {
		k.state = message.StateSent
	}
	replay := decodeInto[accepted](t, f.do("POST", "/v1/emails", "one", goodEmail, "Idempotency-Key", "k"), http.StatusOK)
	if replay.Messages[0].State != "sent" {
		t.Errorf("state of a replay: %s", replay.Messages[0].State)
	}
}

// A repeat is answered even when its expires_at has passed since.
func TestRepeatAfterExpiry(t *testing.T) {
	f := newFixture(t)
	body := fmt.Sprintf(`{"from":"a@example.com","to":["b@example.net"],"text":"t","expires_at":%q}`, f.now.Add(time.Minute).Format(time.RFC3339))
	first := decodeInto[accepted](t, f.do("POST", "/v1/emails", "one", body, "Idempotency-Key", "k"), http.StatusAccepted)
	f.now = f.now.Add(time.Hour)
	again := decodeInto[accepted](t, f.do("POST", "/v1/emails", "one", body, "Idempotency-Key", "k"), http.StatusOK)
	if again.ID != first.ID || again.Messages[0] != first.Messages[0] {
		t.Errorf("got %+v, first %+v", again, first)
	}
	wantProblem(t, f.do("POST", "/v1/emails", "one", body, "Idempotency-Key", "other"), 422, "expires_at")
	wantProblem(t, f.do("POST", "/v1/emails", "one", body), 422, "expires_at")
	if f.count() != 1 {
		t.Errorf("%d accepted", f.count())
	}
}

func TestConcurrentRequestsUnderOneKey(t *testing.T) {
	f := newFixture(t)
	const n = 100
	codes := make([]int, n)
	ids := make([]string, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			a := f.do("POST", "/v1/emails", "one", goodEmail, "Idempotency-Key", "k")
			codes[i], ids[i] = a.StatusCode, string(a.body)
		})
	}
	wg.Wait()
	fresh := 0
	for i := range n {
		if codes[i] == http.StatusAccepted {
			fresh++
		} else if codes[i] != http.StatusOK {
			t.Errorf("status %d", codes[i])
		}
		if ids[i] != ids[0] {
			t.Errorf("answers differ: %s and %s", ids[i], ids[0])
		}
	}
	if fresh != 1 || f.count() != 1 || len(f.items) != 1 {
		t.Errorf("%d times 202, %d accepted, %d published, want 1 of each", fresh, f.count(), len(f.items))
	}
}

func TestLedgerAway(t *testing.T) {
	f := newFixture(t)
	f.fail = fmt.Errorf("dial: %w", message.ErrUnavailable)
	a := f.do("POST", "/v1/emails", "one", goodEmail)
	wantProblem(t, a, 503)
	if a.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	f.fail = fmt.Errorf("secret detail")
	a = f.do("POST", "/v1/emails", "one", goodEmail)
	if p := wantProblem(t, a, 500); p.Code != "internal" || len(f.items) != 0 {
		t.Errorf("%+v, %d items", p, len(f.items))
	}
	if string(a.body) == "" || containsText(a.body, "secret") {
		t.Errorf("body tells the cause: %s", a.body)
	}
	f.panics = true
	wantProblem(t, f.do("POST", "/v1/emails", "one", goodEmail), 500)
}

// What is too much is refused with when to come again, alone and in a batch.
func TestTooMuchIs429(t *testing.T) {
	slow := ingest.NewAdmission(nil, ingest.AdmissionConfig{TenantRate: 0.5})
	f := newFixture(t, func(c *httpapi.Config) {
		c.Service = ingest.New(c.Ledger.(*store), c.Ledger.(*store), ingest.Config{Admission: slow})
	})
	decodeInto[accepted](t, f.do("POST", "/v1/emails", "one", goodEmail), http.StatusAccepted)
	a := f.do("POST", "/v1/emails", "one", goodEmail)
	p := wantProblem(t, a, 429)
	if p.Code != "too_much" || a.Header.Get("Retry-After") != "2" || a.Header.Get("RateLimit") != `"tenant-rate";r=0;t=2` ||
		a.Header.Get("RateLimit-Policy") != `"tenant-rate";q=1;w=1` {
		t.Errorf("%s %v", p.Code, a.Header)
	}
	line := f.do("POST", "/v1/batches", "one", `{"channel":"email",`+goodEmail[1:]+"\n", "Content-Type", "application/x-ndjson")
	if line.StatusCode != 200 || !strings.Contains(string(line.body), `"status":429`) {
		t.Errorf("a line: %d %s", line.StatusCode, line.body)
	}
	decodeInto[accepted](t, f.do("POST", "/v1/emails", "two", goodEmail), http.StatusAccepted)
}
