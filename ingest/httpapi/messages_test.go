package httpapi_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

func TestGetMessage(t *testing.T) {
	f := newFixture(t)
	m := decodeInto[accepted](t, f.do("POST", "/v1/emails", "one", with(goodEmail, object{
		"attachments": []any{object{"filename": "a.txt", "content": "aGVsbG8="}},
	})), 202)
	got := decodeInto[map[string]any](t, f.do("GET", "/v1/messages/"+m.Messages[0].ID, "one", ""), 200)
	for field, want := range map[string]any{
		"id": m.Messages[0].ID, "submission": m.ID, "state": "queued", "stream": "default", "sequence": 1.0,
		"class": "transactional", "channel": "email", "to": "b@example.net", "subject": "s", "accepted_at": "2026-01-02T03:04:05Z",
	} {
		if got[field] != want {
			t.Errorf("%s is %v, want %v", field, got[field], want)
		}
	}
	if _, shown := got["tenant"]; shown {
		t.Error("a tenant is shown its number")
	}
	var events []string
	for _, e := range got["timeline"].([]any) {
		events = append(events, e.(object)["event"].(string))
	}
	if want := "accepted sending unknown decided canceled"; strings.Join(events, " ") != want {
		t.Errorf("timeline %v, want %s", events, want)
	}
	attempt := got["attempts"].([]any)[0].(object)
	if attempt["outcome"] != "unknown" || attempt["decision"] != "resend" || attempt["provider"] != "relay" {
		t.Errorf("attempt: %v", attempt)
	}
	file := got["content"].(object)["email"].(object)["attachments"].([]any)[0].(object)
	if file["size"] != 5.0 || file["content"] != nil {
		t.Errorf("attachment: %v", file)
	}
	operator := decodeInto[map[string]any](t, f.do("GET", "/v1/messages/"+m.Messages[0].ID, "operator", ""), 200)
	if operator["tenant"] != 1.0 {
		t.Errorf("an operator sees tenant %v", operator["tenant"])
	}
	wantProblem(t, f.do("GET", "/v1/messages/"+m.ID, "one", ""), 404)
	push := decodeInto[accepted](t, f.do("POST", "/v1/pushes", "one", with(goodPush, object{"notification": object{"title": "hi"}})), 202)
	got = decodeInto[map[string]any](t, f.do("GET", "/v1/messages/"+push.Messages[0].ID, "one", ""), 200)
	if got["subject"] != "hi" || got["content"].(object)["push"].(object)["to"] != "token-1" {
		t.Errorf("push: %v", got)
	}
}

func TestListMessages(t *testing.T) {
	f := newFixture(t)
	m := f.submitted()
	since := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	got := decodeInto[list](t, f.do("GET", "/v1/messages?idempotency_key=k&submission="+m.ID+
		"&stream=codes&state=sent&class=trigger&channel=push&to=b%40example.net&tag=x&since=2026-01-01T00:00:00Z&cursor=c&limit=7", "one", ""), 200)
	if len(got.Items) != 1 || got.Items[0]["id"] != m.Messages[0].ID || got.Items[0]["content"] != nil {
		t.Errorf("list: %+v", got)
	}
	id, err := message.ParseID(m.ID)
	if err != nil {
		t.Fatal(err)
	}
	key := id.KeyHash()
	filter := f.filter
	if filter.Key == nil || *filter.Key != key {
		t.Errorf("key %v, want %v", filter.Key, key)
	}
	filter.Key = nil
	want := message.Filter{
		Tenant: 1, Submission: id, Stream: "codes", State: message.StateSent, Class: message.Trigger, Channel: message.ChannelPush,
		To: "b@example.net", Tag: "x", Since: since, Cursor: "c", Limit: 7,
	}
	if filter != want {
		t.Errorf("filter %+v, want %+v", filter, want)
	}
	decodeInto[list](t, f.do("GET", "/v1/messages", "operator", ""), 200)
	if f.filter.Limit != 50 || f.filter.Tenant != 0 {
		t.Errorf("defaults: %+v", f.filter)
	}
	decodeInto[list](t, f.do("GET", "/v1/messages?tenant=1&idempotency_key=k", "operator", ""), 200)
	if f.filter.Tenant != 1 || f.filter.Key == nil || *f.filter.Key != key {
		t.Errorf("an operator's filter: %+v", f.filter)
	}
	for query, field := range map[string]string{
		"limit=0": "limit", "limit=201": "limit", "limit=x": "limit", "colour=red": "colour", "state=lost": "state",
		"class=urgent": "class", "channel=fax": "channel", "since=yesterday": "since", "submission=x": "submission",
		"submission=" + m.Messages[0].ID: "submission", "stream=" + strings.Repeat("a", 65): "stream",
	} {
		wantProblem(t, f.do("GET", "/v1/messages?"+query, "one", ""), 422, field)
	}
	wantProblem(t, f.do("GET", "/v1/messages?idempotency_key=k", "operator", ""), 422, "idempotency_key")
}

func TestCancel(t *testing.T) {
	f := newFixture(t)
	m := f.submitted()
	path := "/v1/messages/" + m.Messages[0].ID
	got := decodeInto[map[string]any](t, f.do("DELETE", path, "one", ""), 200)
	if got["state"] != "canceled" {
		t.Errorf("state %v", got["state"])
	}
	for _, k := range f.byKey {
		k.state = message.StateSent
	}
	wantProblem(t, f.do("DELETE", path, "one", ""), 409)
}

func TestAudit(t *testing.T) {
	f := newFixture(t)
	f.submitted()
	for _, key := range []string{"one", "operator"} {
		path := "/v1/streams/codes/audit"
		if key == "operator" {
			wantProblem(t, f.do("GET", path, key, ""), 422, "tenant")
			path += "?tenant=1"
		}
		got := f.do("GET", path, key, "")
		if want := `{"stream":"codes","first":1,"last":1,"from":1,"to":1,"next":0,"missing":[{"from":2,"to":3}],"states":{}}`; strings.TrimSpace(string(got.body)) != want {
			t.Errorf("%s: %s, want %s", key, got.body, want)
		}
	}
	wantProblem(t, f.do("GET", "/v1/streams/none/audit", "one", ""), 404)
	wantProblem(t, f.do("GET", "/v1/streams/codes/audit?from=5&to=4", "one", ""), 422, "to")
	wantProblem(t, f.do("GET", "/v1/streams/codes/audit?from=-1", "one", ""), 422, "from")
}

func TestLanes(t *testing.T) {
	f := newFixture(t)
	got := decodeInto[list](t, f.do("GET", "/v1/lanes", "operator", ""), 200)
	if l := got.Items[0]; l["lane"] != "transactional.email" || l["depth"] != 4.0 || l["journaled"] != 0.0 || l["eta_seconds"] != nil {
		t.Errorf("lane: %v", l)
	}
	if n, told := got.Items[1]["journaled"]; n != nil || !told {
		t.Errorf("what nobody knows: %v", got.Items[1])
	}
}

func TestDoubts(t *testing.T) {
	f := newFixture(t)
	m := f.submitted()
	got := decodeInto[list](t, f.do("GET", "/v1/doubts?limit=3", "operator", ""), 200)
	if d := got.Items[0]; d["id"] != m.Messages[0].ID || d["cause"] != "unknown" || d["message"].(object)["stream"] != "codes" {
		t.Errorf("doubt: %v", d)
	}
	path := "/v1/doubts/" + m.Messages[0].ID
	for body, field := range map[string]string{
		`{"decision":"maybe","reason":"r"}`:                                  "decision",
		`{"reason":"r"}`:                                                     "decision",
		`{"decision":"sent"}`:                                                "reason",
		`{"decision":"sent","reason":" "}`:                                   "reason",
		`{"decision":"sent","reason":"a\nb"}`:                                "reason",
		`{"decision":"sent","reason":"` + strings.Repeat("a", 501) + `"}`:    "reason",
		`{"decision":"sent","reason":"r","by":"me"}`:                         "by",
		`{"decision":5,"reason":"r"}`:                                        "decision",
		`{"decision":"sent","reason":"r","attempt":-1}`:                      "attempt",
		`{"decision":"sent","reason":"r","attempt":0}`:                       "attempt",
		`{"decision":"sent","reason":"r","attempt":2}`:                       "attempt",
		`{"decision":"sent","reason":"r","attempt":"1"}`:                     "attempt",
		`{"decision":"sent","reason":"r","attempt":1.5}`:                     "attempt",
		`{"decision":"sent","reason":"r","attempt":1e99}`:                    "attempt",
		`{"decision":5,"reason":"r","attempt":1}`:                            "decision",
		`{"decision":"sent","decision":"drop","reason":"they are the same"}`: "decision",
	} {
		wantProblem(t, f.do("POST", path, "operator", body), 422, field)
	}
	if len(f.decided) != 0 {
		t.Errorf("decided: %v", f.decided)
	}
	body := `{"decision":"drop","reason":"asked for","attempt":1}`
	decided := decodeInto[map[string]string](t, f.do("POST", path, "operator", body), 200)
	if decided["decision"] != "drop" || decided["by"] != "key 1" {
		t.Errorf("answer: %v", decided)
	}
	if p := wantProblem(t, f.do("POST", path, "operator", body), 409); p.Code != "already_decided" {
		t.Errorf("code %s", p.Code)
	}
	wantProblem(t, f.do("POST", "/v1/doubts/"+m.ID, "operator", body), 404)
	wantProblem(t, f.do("POST", "/v1/doubts/x", "operator", body), 404)
}

func TestDocument(t *testing.T) {
	f := newFixture(t)
	var doc struct {
		OpenAPI string
		Info    struct{ Title, Version string }
		Paths   map[string]map[string]struct {
			OperationID, Summary string
			Parameters           []struct{ Name string }
			Security             []map[string][]string
			RequestBody          struct {
				Content map[string]struct{ Example, Schema any }
			}
			Responses map[string]struct {
				Description string
				Content     map[string]struct{ Example, Schema any }
			}
		}
		Components struct {
			Schemas map[string]struct{ Properties map[string]object }
		}
	}
	a := f.do("GET", "/openapi.json", "", "")
	if err := json.Unmarshal(a.body, &doc); err != nil || a.StatusCode != 200 {
		t.Fatal(a.StatusCode, err)
	}
	if !strings.HasPrefix(doc.OpenAPI, "3.1.") || doc.Info.Title == "" || doc.Info.Version == "" {
		t.Errorf("openapi %q, info %+v", doc.OpenAPI, doc.Info)
	}
	ids := map[string]bool{}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			at := method + " " + path
			if op.OperationID == "" || ids[op.OperationID] || op.Summary == "" {
				t.Errorf("%s: operation id %q is missing or repeated, or no summary", at, op.OperationID)
			}
			ids[op.OperationID] = true
			if strings.HasPrefix(path, "/v1/") != (len(op.Security) > 0) {
				t.Errorf("%s: security %v", at, op.Security)
			}
			if len(op.Security) > 0 {
				for _, status := range []string{"401", "403", "422", "503"} {
					if op.Responses[status].Content["application/problem+json"].Schema == nil {
						t.Errorf("%s: no %s", at, status)
					}
				}
			}
			for status, r := range op.Responses {
				for kind, c := range r.Content {
					if r.Description == "" || c.Schema == nil || status[0] == '2' && c.Example == nil {
						t.Errorf("%s: %s %s has no schema, description or example", at, status, kind)
					}
				}
			}
			if len(op.RequestBody.Content) > 0 && len(op.Security) > 0 {
				if !slices.ContainsFunc(op.Parameters, func(p struct{ Name string }) bool { return p.Name == "Content-Encoding" }) {
					t.Errorf("%s: no Content-Encoding", at)
				}
				for _, status := range []string{"400", "408", "413", "415"} {
					if op.Responses[status].Content["application/problem+json"].Schema == nil {
						t.Errorf("%s: no %s", at, status)
					}
				}
			}
			for kind, c := range op.RequestBody.Content {
				if c.Example == nil || c.Schema == nil {
					t.Errorf("%s: %s has no example or schema", at, kind)
				}
			}
		}
	}
	for _, a := range append(asks("{id}", ""), ask{"GET", "/livez", ""}, ask{"GET", "/readyz", ""}, ask{"GET", "/openapi.json", ""}) {
		path, _, _ := strings.Cut(strings.NewReplacer("codes", "{name}", "holds/1", "holds/{id}", "replays/1", "replays/{id}", "suppressions/1", "suppressions/{id}").Replace(a.path), "?")
		if doc.Paths[path][strings.ToLower(a.method)].OperationID == "" {
			t.Errorf("%s %s is not in the document", a.method, path)
		}
	}
	for _, name := range []string{"Email", "Push", "EmailLine", "PushLine", "Attachment", "Notification", "MessageView", "Problem"} {
		if len(doc.Components.Schemas[name].Properties) == 0 {
			t.Errorf("no schema %s", name)
		}
		for field, p := range doc.Components.Schemas[name].Properties {
			if p["description"] == nil && p["$ref"] == nil {
				t.Errorf("%s.%s has no description", name, field)
			}
		}
	}
	for at, limit := range map[[3]string]float64{
		{"Email", "to", "maxItems"}: 50, {"EmailLine", "attachments", "maxItems"}: 20, {"Email", "headers", "maxProperties"}: 50,
		{"Email", "subject", "maxLength"}: 998, {"Push", "tags", "maxItems"}: 20, {"PushLine", "idempotency_key", "maxLength"}: 255,
	} {
		if got := doc.Components.Schemas[at[0]].Properties[at[1]][at[2]]; got != limit {
			t.Errorf("%s: %v, want %v", at, got, limit)
		}
	}
	if doc.Paths["/v1/batches"]["post"].RequestBody.Content["application/jsonl"].Schema == nil ||
		doc.Paths["/v1/audit"]["get"].Responses["200"].Content["application/x-ndjson"].Schema == nil {
		t.Error("a type that is taken or served isn't in the document")
	}
	checkReferences(t, a.body)
	// Its own examples are accepted.
	for path, kind := range map[string]string{"/v1/emails": "application/json", "/v1/pushes": "application/json", "/v1/batches": "application/x-ndjson"} {
		body, err := json.Marshal(doc.Paths[path]["post"].RequestBody.Content[kind].Example)
		if err != nil {
			t.Fatal(err)
		}
		if got := f.do("POST", path, "one", string(body), "Content-Type", kind); got.StatusCode >= 300 || containsText(got.body, `"error"`) {
			t.Errorf("%s: the example is answered with %d %s", path, got.StatusCode, got.body)
		}
	}
}

// checkReferences follows each $ref of a document.
func checkReferences(t *testing.T, document []byte) {
	var doc object
	if err := json.Unmarshal(document, &doc); err != nil {
		t.Fatal(err)
	}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case object:
			if ref, ok := v["$ref"].(string); ok {
				var at any = doc
				for step := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
					o, _ := at.(object)
					at = o[step]
				}
				if at == nil {
					t.Errorf("%s leads nowhere", ref)
				}
			}
			for _, e := range v {
				walk(e)
			}
		case []any:
			for _, e := range v {
				walk(e)
			}
		}
	}
	walk(doc)
}
