package httpapi_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

type line struct {
	Line, Status int
	ID           string
	Messages     []struct{ ID, To, State string }
	Error        *problem
}

func (f *fixture) batch(lines ...string) []line {
	f.t.Helper()
	a := f.do("POST", "/v1/batches", "one", strings.Join(lines, "\n")+"\n", "Content-Type", "application/x-ndjson")
	if a.StatusCode != 200 || a.Header.Get("Content-Type") != "application/x-ndjson" {
		f.t.Fatalf("%d %s", a.StatusCode, a.body)
	}
	var out []line
	for _, b := range bytes.Split(bytes.TrimSpace(a.body), []byte("\n")) {
		var l line
		if err := json.Unmarshal(b, &l); err != nil {
			f.t.Fatal(err)
		}
		out = append(out, l)
	}
	return out
}

func TestBatch(t *testing.T) {
	f := newFixture(t)
	email := with(goodEmail, object{"channel": "email", "idempotency_key": "k"})
	push := with(goodPush, object{"channel": "push"})
	f.batch(email)
	got := f.batch(
		email,
		push,
		with(email, object{"text": "other"}),
		with(email, object{"from": "x", "tos": 1}),
		"{",
		"",
		with(email, object{"channel": "fax"}),
		with(push, object{"subject": "s"}),
		with(push, object{"idempotency_key": strings.Repeat("k", 256)}),
		with(push, object{"idempotency_key": ""}),
		`{"ſubject":5,`+email[1:],
	)
	want := []struct {
		status int
		field  string
	}{{200, ""}, {202, ""}, {422, "idempotency_key"}, {422, "tos"}, {400, "body"}, {400, "body"}, {422, "channel"}, {422, "subject"}, {422, "idempotency_key"},
		{422, "idempotency_key"}, {422, "[\"ſubject\"]"}}
	if len(got) != len(want) {
		t.Fatalf("%d lines, want %d", len(got), len(want))
	}
	for i, w := range want {
		l := got[i]
		if l.Line != i+1 || l.Status != w.status {
			t.Errorf("line %d: %+v, want status %d", i+1, l, w.status)
		}
		if w.field == "" {
			if l.ID == "" || len(l.Messages) != 1 || l.Error != nil {
				t.Errorf("line %d: %+v", i+1, l)
			}
			continue
		}
		if l.Error == nil || l.ID != "" {
			t.Errorf("line %d: %+v", i+1, l)
			continue
		}
		named := false
		for _, e := range l.Error.Errors {
			named = named || e.Field == w.field
		}
		if !named {
			t.Errorf("line %d names no %s: %+v", i+1, w.field, l.Error)
		}
	}
	if f.count() != 2 {
		t.Errorf("%d accepted, want 2", f.count())
	}
}

func TestBatchLimits(t *testing.T) {
	f := newFixture(t)
	one := with(goodPush, object{"channel": "push"})
	lines := make([]string, 1001)
	for i := range lines {
		lines[i] = one
	}
	body := strings.Join(lines, "\n")
	wantProblem(t, f.do("POST", "/v1/batches", "one", body, "Content-Type", "application/x-ndjson"), 413, "body")
	wantProblem(t, f.do("POST", "/v1/batches", "one", "\n", "Content-Type", "application/x-ndjson"), 400, "body")
	wantProblem(t, f.do("POST", "/v1/batches", "one", one, "Content-Type", "text/plain"), 415, "Content-Type")
	wantProblem(t, f.do("POST", "/v1/batches", "one", one, "Content-Type", "application/x-ndjson", "Idempotency-Key", "k"), 422, "Idempotency-Key")
	if f.count() != 0 {
		t.Fatalf("%d accepted", f.count())
	}
	got := f.batch(lines[:1000]...)
	if len(got) != 1000 || f.count() != 1000 {
		t.Errorf("%d answers, %d accepted", len(got), f.count())
	}
	f.panics = true
	if got := f.batch(one); got[0].Status != 500 || got[0].Error == nil {
		t.Errorf("after a panic: %+v", got)
	}
}
