package httpapi_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stormpost/stormpost/ingest/httpapi"
)

func containsText(b []byte, s string) bool { return bytes.Contains(b, []byte(s)) }

type object = map[string]any

// with is a good request with some members replaced; nil takes one away.
func with(base string, change object) string {
	var o object
	if err := json.Unmarshal([]byte(base), &o); err != nil {
		panic(err)
	}
	maps.Copy(o, change)
	for k, v := range change {
		if v == nil {
			delete(o, k)
		}
	}
	b, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func many(n int, format string) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf(format, i)
	}
	return all
}

func TestInvalidEmails(t *testing.T) {
	now := time.Now()
	in := func(d time.Duration) string { return now.Add(d).Format(time.RFC3339) }
	file := func(change object) object {
		f := object{"filename": "a.txt", "content": "aGk="}
		maps.Copy(f, change)
		return object{"attachments": []any{f}}
	}
	for name, c := range map[string]struct {
		change object
		fields []string
	}{
		"unknown field":        {object{"fro": "x"}, []string{"fro"}},
		"name in another case": {object{"Subject": "x"}, []string{"Subject"}},
		"unknown nested":       {file(object{"size": 1}), []string{"attachments[0].size"}},
		"no from":              {object{"from": nil}, []string{"from"}},
		"foreign domain":       {object{"from": "a@example.org"}, []string{"from"}},
		"subdomain":            {object{"from": "a@sub.example.com"}, []string{"from"}},
		"from with line break": {object{"from": "A\r\nBcc: x@example.com <a@example.com>"}, []string{"from"}},
		"no recipients":        {object{"to": []string{}}, []string{"to"}},
		"to is a string":       {object{"to": "b@example.net"}, []string{"to"}},
		"bad addresses": {object{"to": []string{"b@example.net", "nobody", "a@b@c.net", "a b@example.net", "@example.net", "x@-a.net", "x@a..net"}},
			[]string{"to[1]", "to[2]", "to[3]", "to[4]", "to[5]", "to[6]"}},
		"odd addresses": {object{"cc": []string{"group: a@example.net;", `"a b"@example.net`, "a%b@example.net", "a@[127.0.0.1]", "a@localhost", "a@1.2.3.4", "", "a@example.net (b)", "<@c.net:a@example.net>"}},
			[]string{"cc[0]", "cc[1]", "cc[2]", "cc[3]", "cc[4]", "cc[5]", "cc[6]", "cc[7]", "cc[8]"}},
		"line break in an address": {object{"to": []string{"b@example.net\r\nBcc: x@example.net"}}, []string{"to[0]"}},
		"hidden line break":        {object{"to": []string{"=?utf-8?q?a=0D=0Ab?= <b@example.net>"}}, []string{"to[0]"}},
		"long local part":          {object{"to": []string{strings.Repeat("a", 65) + "@example.net"}}, []string{"to[0]"}},
		"long address":             {object{"to": []string{"a@" + strings.Repeat("abcdefghi.", 26) + "net"}}, []string{"to[0]"}},
		"element null":             {object{"to": []any{nil}}, []string{"to[0]"}},
		"element number":           {object{"to": []any{"b@example.net", 5}}, []string{"to[1]"}},
		"too many recipients":      {object{"to": many(51, "b%d@example.net")}, []string{"to"}},
		"too many over three":      {object{"to": many(20, "b%d@example.net"), "cc": many(20, "c%d@example.net"), "bcc": many(20, "d%d@example.net")}, []string{"to"}},
		"repeated":                 {object{"to": []string{"b@example.net"}, "bcc": []string{"B <b@EXAMPLE.net>"}}, []string{"bcc[0]"}},
		"bad reply_to":             {object{"reply_to": []string{"x"}}, []string{"reply_to[0]"}},
		"line breaks in the rest": {object{"reply_to": []string{"a@example.net\r\nX: y"}, "cc": []string{"c@example.net\nX: y"}, "bcc": []string{"\rd@example.net"}},
			[]string{"reply_to[0]", "cc[0]", "bcc[0]"}},
		"over-long subject":          {object{"subject": strings.Repeat("a", 999)}, []string{"subject"}},
		"line break in subject":      {object{"subject": "a\nb"}, []string{"subject"}},
		"carriage return in subject": {object{"subject": "a\rb"}, []string{"subject"}},
		"NUL in subject":             {object{"subject": "a\x00b"}, []string{"subject"}},
		"no body":                    {object{"text": nil}, []string{"text"}},
		"NUL in text":                {object{"text": "a\x00b"}, []string{"text"}},
		"text is a number":           {object{"text": 5}, []string{"text"}},
		"line break in a header":     {object{"headers": object{"X-A": "a\r\nBcc: b@example.net"}}, []string{"headers.X-A"}},
		"line break in a name":       {object{"headers": object{"X-A\r\nBcc": "b"}}, []string{`headers["X-A\r\nBcc"]`}},
		"own headers": {object{"headers": object{"From": "x", "message-id": "x", "Content-Type": "x", "DKIM-Signature": "x", "Received": "x", "Reply-To": "x"}},
			[]string{"headers.From", "headers.message-id", "headers.Content-Type", "headers.DKIM-Signature", "headers.Received", "headers.Reply-To"}},
		"header twice":           {object{"headers": object{"X-A": "a", "x-a": "b"}}, []string{"headers.x-a"}},
		"header null":            {object{"headers": object{"X-A": nil}}, []string{"headers.X-A"}},
		"long header":            {object{"headers": object{"X-A": strings.Repeat("a", 999)}}, []string{"headers.X-A"}},
		"one-click without link": {object{"headers": object{"List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}}, []string{"headers.List-Unsubscribe-Post"}},
		"bad base64":             {file(object{"content": "%%%"}), []string{"attachments[0].content"}},
		"no content":             {file(object{"content": nil}), []string{"attachments[0].content"}},
		"no filename":            {file(object{"filename": ""}), []string{"attachments[0].filename"}},
		"filename with break":    {file(object{"filename": "a\r\nb"}), []string{"attachments[0].filename"}},
		"filename with path":     {file(object{"filename": "../a"}), []string{"attachments[0].filename"}},
		"bad content type":       {file(object{"content_type": "text/plain\r\nX: y"}), []string{"attachments[0].content_type"}},
		"bad content id":         {file(object{"content_id": "<a b>"}), []string{"attachments[0].content_id"}},
		"unknown class":          {object{"class": "urgent"}, []string{"class"}},
		"bad stream":             {object{"stream": "a/b"}, []string{"stream"}},
		"long stream":            {object{"stream": strings.Repeat("a", 65)}, []string{"stream"}},
		"long supersede_key":     {object{"supersede_key": strings.Repeat("a", 256)}, []string{"supersede_key"}},
		"supersede_key breaks":   {object{"supersede_key": "a\nb"}, []string{"supersede_key"}},
		"supersede_key with NUL": {object{"supersede_key": "a\x00b"}, []string{"supersede_key"}},
		"bad tags":               {object{"tags": []string{"ok", "a b", ""}}, []string{"tags[1]", "tags[2]"}},
		"too many tags":          {object{"tags": many(21, "t%d")}, []string{"tags"}},
		"past expires_at":        {object{"expires_at": in(-time.Second)}, []string{"expires_at"}},
		"far expires_at":         {object{"expires_at": in(91 * 24 * time.Hour)}, []string{"expires_at"}},
		"far send_at":            {object{"send_at": in(31 * 24 * time.Hour)}, []string{"send_at"}},
		"expires before send_at": {object{"send_at": in(2 * time.Hour), "expires_at": in(time.Hour)}, []string{"expires_at"}},
		"send_at is no time":     {object{"send_at": "tomorrow"}, []string{"send_at"}},
		"expires_at is a number": {object{"expires_at": 12}, []string{"expires_at"}},
		"zone of a day":          {object{"send_at": "2026-12-01T00:00:00+24:00"}, []string{"send_at"}},
		"zone of 60 minutes":     {object{"expires_at": "2026-12-01T00:00:00+23:60"}, []string{"expires_at"}},
		"decimal comma":          {object{"expires_at": "2026-12-01T00:00:00,5Z"}, []string{"expires_at"}},
		"hour of one digit":      {object{"expires_at": "2026-12-01T0:00:00Z"}, []string{"expires_at"}},
		"the time for none":      {object{"send_at": "0001-01-01T00:00:00Z", "expires_at": "0001-01-01T00:00:00Z"}, []string{"send_at", "expires_at"}},
		"a path for a name":      {object{"from.x": 5, "from": "bad"}, []string{`["from.x"]`, "from"}},
		"all at once": {object{"from": "x", "to": []string{"y"}, "subject": "\n", "class": "z", "oops": 1, "send_at": false},
			[]string{"from", "to[0]", "subject", "class", "oops", "send_at"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			wantProblem(t, f.do("POST", "/v1/emails", "one", with(goodEmail, c.change)), 422, c.fields...)
			if f.count() != 0 {
				t.Error("something was stored")
			}
		})
	}
}

func TestInvalidPushes(t *testing.T) {
	for name, c := range map[string]struct {
		change object
		field  string
	}{
		"no platform":                {object{"platform": nil}, "platform"},
		"unknown platform":           {object{"platform": "telex"}, "platform"},
		"not configured":             {object{"platform": "apns"}, "platform"},
		"no target":                  {object{"to": nil}, "to"},
		"target is a list":           {object{"to": []string{"x"}}, "to"},
		"unknown in target":          {object{"to": object{"topic": "a", "token": "b"}}, "to.token"},
		"bad topic":                  {object{"to": object{"topic": "a b"}}, "to.topic"},
		"topic is a number":          {object{"to": object{"topic": 1}}, "to.topic"},
		"endpoint for fcm":           {object{"to": object{"endpoint": "https://push.example.net/x"}}, "to.endpoint"},
		"blank in token":             {object{"to": "a b"}, "to"},
		"topic path as a token":      {object{"to": "/topics/a"}, "to"},
		"long token":                 {object{"to": strings.Repeat("a", 4097)}, "to"},
		"nothing to show":            {object{"data": nil}, "notification"},
		"empty notification":         {object{"notification": object{}}, "notification"},
		"image not https":            {object{"notification": object{"title": "t", "image": "http://x.example/a.png"}}, "notification.image"},
		"reserved data":              {object{"data": object{"from": "x"}}, "data.from"},
		"reserved family":            {object{"data": object{"google.x": "x"}}, "data.google.x"},
		"our own data":               {object{"data": object{"stormpost_id": "x"}}, "data.stormpost_id"},
		"data is a number":           {object{"data": object{"k": 1}}, "data.k"},
		"line break in collapse_key": {object{"collapse_key": "a\r\nb"}, "collapse_key"},
		"unknown class":              {object{"class": "urgent"}, "class"},
		"long collapse_key":          {object{"collapse_key": strings.Repeat("a", 65)}, "collapse_key"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			wantProblem(t, f.do("POST", "/v1/pushes", "one", with(goodPush, c.change)), 422, c.field)
			if f.count() != 0 {
				t.Error("something was stored")
			}
		})
	}
}

func TestMalformedBodies(t *testing.T) {
	deep := strings.Repeat(`{"a":`, 20000) + "1" + strings.Repeat("}", 20000)
	for name, c := range map[string]struct {
		body   string
		status int
		field  string
	}{
		"empty":            {" ", 400, "body"},
		"not JSON":         {"{", 400, "body"},
		"trailing garbage": {goodEmail + "x", 400, "body"},
		"two values":       {goodEmail + goodEmail, 400, "body"},
		"a list":           {"[]", 400, "body"},
		"null":             {"null", 400, "body"},
		"deep":             {deep, 400, "body"},
		"invalid UTF-8":    {strings.Replace(goodEmail, `"s"`, "\"\xff\"", 1), 400, "body"},
		"half surrogate":   {strings.Replace(goodEmail, `"s"`, `"\ud800"`, 1), 422, "subject"},
		"repeated":         {strings.Replace(goodEmail, `{`, `{"subject":"other",`, 1), 422, "subject"},
		"repeated, hidden": {strings.Replace(goodEmail, `{`, `{"sub\u006aect":"other",`, 1), 422, "subject"},
		"repeated header":  {strings.Replace(goodEmail, `{`, `{"headers":{"X-A":"1","X-A":"2"},`, 1), 422, "headers.X-A"},
		"folds to ours":    {strings.Replace(goodEmail, `{`, `{"ſubject":5,`, 1), 422, "[\"ſubject\"]"},
		"beyond the list":  {`{` + strings.Join(many(60, `"x%d":1`), ",") + `,"subject":5}`, 422, "x49"},
		"empty name":       {strings.Replace(goodEmail, `{`, `{"":1,`, 1), 422, `[""]`},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			wantProblem(t, f.do("POST", "/v1/emails", "one", c.body), c.status, c.field)
			if f.count() != 0 {
				t.Error("something was stored")
			}
		})
	}
	f := newFixture(t)
	decodeInto[accepted](t, f.do("POST", "/v1/emails", "one", strings.Replace(goodEmail, `"s"`, `"\ud83d\ude00 \/"`, 1)), http.StatusAccepted)
}

// What operators ask for is read as strictly as what is submitted.
func TestOperatorsBodies(t *testing.T) {
	f := newFixture(t, func(c *httpapi.Config) { c.Limits.Body = 100 << 10 })
	id := f.submitted().Messages[0].ID
	for path, good := range map[string]string{
		"/v1/doubts":                      `{"filter":{"provider":"p"},"decision":"drop","dry_run":true,"reason":"r"}`,
		"/v1/doubts/" + id:                `{"decision":"drop","reason":"r"}`,
		"/v1/holds":                       `{"provider":"p","reason":"r"}`,
		"/v1/replays":                     `{"filter":{"tag":"t"},"reason":"r"}`,
		"/v1/messages/" + id + "/release": `{"reason":"r"}`,
	} {
		for name, c := range map[string]struct {
			body    string
			status  int
			field   string
			headers []string
		}{
			"another case":    {strings.Replace(good, "{", `{"Reason":"x",`, 1), 422, "Reason", nil},
			"folds to ours":   {strings.Replace(good, "{", `{"reaſon":5,`, 1), 422, "[\"reaſon\"]", nil},
			"repeated":        {strings.Replace(good, "{", `{"reason":"x",`, 1), 422, "reason", nil},
			"half surrogate":  {strings.Replace(good, `"r"`, `"\ud800"`, 1), 422, "reason", nil},
			"invalid UTF-8":   {strings.Replace(good, `"r"`, "\"\xff\"", 1), 400, "body", nil},
			"empty":           {" ", 400, "body", nil},
			"a list":          {"[]", 400, "body", nil},
			"too large":       {good + strings.Repeat(" ", 100<<10), 413, "body", nil},
			"text":            {good, 415, "Content-Type", []string{"Content-Type", "text/plain"}},
			"no type":         {good, 415, "Content-Type", []string{"Content-Type", ""}},
			"not gzip":        {good, 400, "body", []string{"Content-Encoding", "gzip"}},
			"unknown coding":  {good, 415, "Content-Encoding", []string{"Content-Encoding", "br"}},
			"other parameter": {good, 422, "dry_run", nil},
		} {
			at := path
			if name == "other parameter" {
				at += "?dry_run=true"
			}
			t.Run(path+" "+name, func(t *testing.T) {
				p := wantProblem(t, f.do("POST", at, "operator", c.body, c.headers...), c.status, c.field)
				if len(p.Errors) != 1 {
					t.Errorf("%+v", p.Errors)
				}
			})
		}
	}
	for body, field := range map[string]string{
		`{"filter":{"provider":"p"},"decision":"drop","reason":"r","dry_run":true,"Dry_run":false}`: "Dry_run",
		`{"filter":{"lane":"trigger.push","lane":"trigger.email"},"decision":"drop","reason":"r"}`:  "filter.lane",
		`{"filter":{"provider":"\u0000"},"decision":"drop","reason":"r"}`:                           "filter.provider",
		`{"filter":{"tenant":2147483648},"decision":"drop","reason":"r"}`:                           "filter.tenant",
		`{"filter":{"tenant":1.0},"decision":"drop","reason":"r"}`:                                  "filter.tenant",
		`{"filter":{"tenant":1e0},"decision":"drop","reason":"r"}`:                                  "filter.tenant",
		`{"filter":{"since":"2026-12-01T00:00:00+24:00"},"decision":"drop","reason":"r"}`:           "filter.since",
		`{"filter":{"provider":"p","until":"0001-01-01T00:00:00Z"},"decision":"drop","reason":"r"}`: "filter.until",
	} {
		a := f.do("POST", "/v1/doubts", "operator", body)
		wantProblem(t, a, 422, field)
		if containsText(a.body, "json:") || containsText(a.body, "Go ") {
			t.Errorf("%s is answered in Go's words: %s", body, a.body)
		}
	}
	for _, since := range []string{"2026-12-01T00:00:00+24:00", "0000-01-01T00:00:00+23:00", "9999-12-31T23:59:59-23:00", "2026-12-01T00:00:00,5Z"} {
		wantProblem(t, f.do("POST", "/v1/replays", "operator", `{"filter":{"since":"`+since+`"},"reason":"r"}`), 422, "filter.since")
	}
	if len(f.decided) != 0 || len(f.holds) != 0 {
		t.Errorf("%d decided, %d held", len(f.decided), len(f.holds))
	}
	gzipped := f.do("POST", "/v1/holds", "operator", squeeze(`{"provider":"p","reason":"r"}`), "Content-Encoding", "gzip")
	if gzipped.StatusCode != 200 || len(f.holds) != 1 {
		t.Errorf("gzip: %d %s", gzipped.StatusCode, gzipped.body)
	}
}

// What no path or parameter can be is refused before a store is asked.
func TestInvalidURLs(t *testing.T) {
	f := newFixture(t)
	f.failReads = errors.New("asked")
	f.submitted()
	for path, field := range map[string]string{
		"/v1/streams/%00/audit": "", "/v1/streams/%ff/audit": "", "/v1/streams/%00%66/audit": "", "/v1/messages/%00": "", "/v1/replays/%00": "",
		"/v1/messages?stream=%00": "stream", "/v1/messages?stream=%ff": "stream", "/v1/messages?%ff=1": `["\xff"]`,
		"/v1/suppressions?to=%00": "to", "/v1/suppressions?to=%ff": "to",
		"/v1/messages?since=2026-12-01T00:00:00%2B24:00": "since", "/v1/messages?since=noon": "since",
		"/v1/messages?tenant=1&tenant=2": "tenant", "/v1/messages?tenant=%zz": "query", "/v1/messages?tenants=1": "tenants",
		"/v1/audit?lane=%00": "lane", "/v1/audit?lanes=all": "lanes",
	} {
		if field == "" {
			wantProblem(t, f.do("GET", path, "operator", ""), 404)
		} else {
			wantProblem(t, f.do("GET", path, "operator", ""), 422, field)
		}
	}
	wantProblem(t, f.do("POST", "/v1/emails?dry_run=true", "one", goodEmail), 422, "dry_run")
	if f.count() != 1 {
		t.Errorf("%d accepted", f.count())
	}
}

// A body that breaks off isn't called gzip.
func TestBrokenBody(t *testing.T) {
	f := newFixture(t)
	r := httptest.NewRequest("POST", "/v1/emails", io.MultiReader(strings.NewReader("{"), iotest.ErrReader(errors.New("invalid byte in chunk length"))))
	r.Header.Set("Authorization", "Bearer one")
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	f.handler.ServeHTTP(w, r)
	if wantProblem(t, answer{w.Result(), w.Body.Bytes()}, 400, "body"); strings.Contains(w.Body.String(), "gzip") {
		t.Errorf("%s", w.Body)
	}
}

func TestInvalidHeaders(t *testing.T) {
	f := newFixture(t)
	for name, c := range map[string]struct {
		status  int
		field   string
		headers []string
	}{
		"long key":         {422, "Idempotency-Key", []string{"Idempotency-Key", strings.Repeat("k", 256)}},
		"empty key":        {422, "Idempotency-Key", []string{"Idempotency-Key", ""}},
		"key with umlaut":  {422, "Idempotency-Key", []string{"Idempotency-Key", "kéy"}},
		"text":             {415, "Content-Type", []string{"Content-Type", "text/plain"}},
		"no type":          {415, "Content-Type", []string{"Content-Type", ""}},
		"another charset":  {415, "Content-Type", []string{"Content-Type", "application/json; charset=latin1"}},
		"unknown encoding": {415, "Content-Encoding", []string{"Content-Encoding", "br"}},
		"not gzip":         {400, "body", []string{"Content-Encoding", "gzip"}},
	} {
		t.Run(name, func(t *testing.T) {
			wantProblem(t, f.do("POST", "/v1/emails", "one", goodEmail, c.headers...), c.status, c.field)
		})
	}
	if f.count() != 0 {
		t.Error("something was stored")
	}
	decodeInto[accepted](t, f.do("POST", "/v1/emails", "one", goodEmail, "Content-Type", "application/json; charset=UTF-8",
		"Idempotency-Key", strings.Repeat("k", 255)), http.StatusAccepted)
}

func squeeze(s string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write([]byte(s))
	_ = z.Close()
	return b.String()
}

func TestBodyLimit(t *testing.T) {
	f := newFixture(t)
	over := with(goodEmail, object{"text": strings.Repeat("a", 10<<20)})
	wantProblem(t, f.do("POST", "/v1/emails", "one", over), 413, "body")

	bomb := squeeze(over)
	if len(bomb) > 1<<20 {
		t.Fatalf("the bomb has %d bytes", len(bomb))
	}
	wantProblem(t, f.do("POST", "/v1/emails", "one", bomb, "Content-Encoding", "gzip"), 413, "body")
	whole := squeeze(goodEmail)
	wantProblem(t, f.do("POST", "/v1/emails", "one", whole[:len(whole)-9], "Content-Encoding", "gzip"), 400, "body")
	if f.count() != 0 {
		t.Error("something was stored")
	}
	decodeInto[accepted](t, f.do("POST", "/v1/emails", "one", whole, "Content-Encoding", "gzip"), http.StatusAccepted)
	decodeInto[accepted](t, f.do("POST", "/v1/emails", "one", with(goodEmail, object{"text": strings.Repeat("a", 9<<20)})), http.StatusAccepted)
}
