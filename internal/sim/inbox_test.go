package sim

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
)

func inbox(t testing.TB) (*Inbox, *Store, *Faults) {
	t.Helper()
	s := openStore(t, t.TempDir())
	f := smtpFaults(time.Now)
	return NewInbox(s, map[string]*Faults{"smtp": f}, slog.New(slog.DiscardHandler)), s, f
}

func ask(h http.Handler, method, target, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, target, strings.NewReader(body)))
	return w
}

func TestInboxMessages(t *testing.T) {
	in, s, _ := inbox(t)
	if w := ask(in, "GET", "/messages", ""); strings.TrimSpace(w.Body.String()) != "[]" {
		t.Fatalf("empty: %s", w.Body)
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	appendAll(t, s,
		Taken{Channel: "email", To: "a@x", Subject: "one", MessageID: "1", ReceivedAt: at},
		Taken{Channel: "push", To: "tok", Subject: "two", MessageID: "2", ReceivedAt: at},
		Taken{Channel: "email", To: "b@x", Subject: "three", MessageID: "3", ReceivedAt: at})
	for query, want := range map[string][]string{
		"":                           {"3", "2", "1"},
		"?limit=2":                   {"3", "2"},
		"?channel=email":             {"3", "1"},
		"?channel=email&limit=1":     {"3"},
		"?to=a@x":                    {"1"},
		"?to=nobody":                 {},
		"?to=x&channel=push&limit=9": {},
	} {
		w := ask(in, "GET", "/messages"+query, "")
		var rows []row
		if err := json.Unmarshal(w.Body.Bytes(), &rows); err != nil || w.Code != 200 {
			t.Fatalf("%s: %d %s %v", query, w.Code, w.Body, err)
		}
		got := []string{}
		for _, r := range rows {
			got = append(got, r.MessageID)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", query, got, want)
		}
	}
	w := ask(in, "GET", "/messages?channel=push", "")
	if got := strings.TrimSpace(w.Body.String()); got != `[{"channel":"push","to":"tok","subject":"two","message_id":"2","received_at":"2026-01-02T03:04:05Z"}]` {
		t.Errorf("got %s", got)
	}
	for _, bad := range []string{"?limit=0", "?limit=x"} {
		if w := ask(in, "GET", "/messages"+bad, ""); w.Code != 400 {
			t.Errorf("%s: %d", bad, w.Code)
		}
	}
}

// The list is of all that was ever taken, whatever of it the store remembers;
// after a restart, too.
func TestInboxListsMoreThanTheTail(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	const n = TailLimit + 2345
	batch := make([]Taken, n)
	for i := range batch {
		batch[i] = Taken{Channel: "email", To: "a@x", MessageID: strconv.Itoa(i + 1)}
	}
	batch[0].To, batch[1].Raw = "first@x", bytes.Repeat([]byte("x"), RawLimit)
	appendAll(t, s, batch...)
	check := func(in *Inbox) {
		t.Helper()
		for query, want := range map[string][2]int{ // how many, and the last one's number
			"":                         {n, 1},
			"?limit=2":                 {2, n - 1},
			"?limit=12000":             {12_000, n - 12_000 + 1},
			"?limit=100000":            {n, 1},
			"?to=first@x":              {1, 1},
			"?channel=email&to=a@x":    {n - 1, 2},
			"?channel=push&limit=9999": {0, 0},
		} {
			w := ask(in, "GET", "/messages"+query, "")
			var rows []row
			if err := json.Unmarshal(w.Body.Bytes(), &rows); err != nil || w.Code != 200 || rows == nil {
				t.Fatalf("%s: %d %v", query, w.Code, err)
			}
			last := 0
			for i, r := range rows {
				number, _ := strconv.Atoi(r.MessageID)
				if i > 0 && number != last-1 {
					t.Fatalf("%s: after %d comes %s", query, last, r.MessageID)
				}
				last = number
			}
			if len(rows) != want[0] || last != want[1] {
				t.Errorf("%s: %d down to %d, want %d down to %d", query, len(rows), last, want[0], want[1])
			}
		}
		// The page keeps to the tail.
		if page := ask(in, "GET", "/?to=first@x", "").Body.String(); strings.Contains(page, "/messages/1\"") {
			t.Error("the page reads the whole file")
		}
	}
	check(NewInbox(s, nil, slog.New(slog.DiscardHandler)))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	in := NewInbox(s, nil, slog.New(slog.DiscardHandler))
	check(in)

	// What can't be read to its end doesn't look whole.
	if err := os.WriteFile(filepath.Join(dir, TakenFile), []byte("garbage"), 0o600); err != nil { // under the store
		t.Fatal(err)
	}
	defer func() {
		if recover() != http.ErrAbortHandler {
			t.Error("a list that was cut short looks whole")
		}
	}()
	ask(in, "GET", "/messages", "")
}

// What is in a message is shown, and does nothing.
func TestInboxPagesEscape(t *testing.T) {
	in, s, _ := inbox(t)
	const evil = `"><script>alert(1)</script>`
	appendAll(t, s, Taken{Channel: "email", From: evil, To: evil, Subject: evil, MessageID: evil, Raw: []byte("</pre>" + evil + "\xff"), Size: 100})
	for _, path := range []string{"/", "/messages/1"} {
		w := ask(in, "GET", path, "")
		page := w.Body.String()
		if w.Code != 200 || strings.Contains(page, "<script") || !strings.Contains(page, "&lt;script&gt;alert(1)") {
			t.Errorf("%s: %d %s", path, w.Code, page)
		}
		if csp := w.Header().Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'; style-src 'self';") {
			t.Errorf("%s: policy %q", path, csp)
		}
	}
	one := ask(in, "GET", "/messages/1", "").Body.String()
	if !strings.Contains(one, "<pre>&lt;/pre&gt;") || !strings.Contains(one, "The rest was not kept") {
		t.Errorf("got %s", one)
	}
	if strings.Contains(one, "http-equiv") {
		t.Error("the page of one message refreshes")
	}
	for _, path := range []string{"/messages/0", "/messages/2", "/messages/x", "/other"} {
		if w := ask(in, "GET", path, ""); w.Code != 404 {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
	if w := ask(in, "GET", "/inbox.css", ""); w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/css") {
		t.Errorf("style: %d %v", w.Code, w.Header())
	}
}

func TestInboxFaults(t *testing.T) {
	in, _, f := inbox(t)
	w := ask(in, "POST", "/faults", `{"server":"smtp","faults":[{"step":"dot","do":"answer","code":451,"delay":"1s","times":2}]}`)
	if got := strings.TrimSpace(w.Body.String()); w.Code != 200 || got != `{"smtp":[{"step":"dot","do":"answer","times":2,"delay":"1s","code":451}]}` {
		t.Fatalf("%d %s", w.Code, got)
	}
	if list := f.ListFaults(); len(list) != 1 || list[0].Delay != time.Second {
		t.Fatalf("set %+v", list)
	}
	if page := ask(in, "GET", "/", "").Body.String(); !strings.Contains(page, "&#34;code&#34;: 451") {
		t.Errorf("the page doesn't show it: %s", page)
	}
	for _, bad := range []string{``, `{}`, `{"server":"x"}`, `{"server":"smtp","fault":[]}`, `{"server":"smtp","faults":[{"step":"x"}]}`, `{"server":"smtp","faults":[{"stop":"dot"}]}`} {
		if w := ask(in, "POST", "/faults", bad); w.Code != 400 {
			t.Errorf("%s: %d", bad, w.Code)
		}
	}
	if n := len(f.ListFaults()); n != 1 {
		t.Fatalf("%d faults after refused changes", n)
	}

	// A page elsewhere can't do it through somebody's browser.
	r := httptest.NewRequest("POST", "/faults", strings.NewReader(`{"server":"smtp","faults":[]}`))
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	rec := httptest.NewRecorder()
	in.ServeHTTP(rec, r)
	if rec.Code != 403 || len(f.ListFaults()) != 1 {
		t.Fatalf("from another site: %d", rec.Code)
	}
	if w := ask(in, "POST", "/faults", `{"server":"smtp","faults":[]}`); w.Code != 200 || len(f.ListFaults()) != 0 {
		t.Fatalf("cleared: %d", w.Code)
	}
	if w := ask(in, "GET", "/faults", ""); strings.TrimSpace(w.Body.String()) != `{"smtp":[]}` {
		t.Fatalf("got %s", w.Body)
	}
}

func TestStartAllTwice(t *testing.T) {
	dir := t.TempDir()
	var before string
	for run := 1; run <= 2; run++ {
		s, err := StartAll(t.Context(), Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		c := httpClient(t, &http.Transport{})
		if got := get(t, c, s.InboxURL+"/messages"); got != before && run == 2 {
			t.Fatalf("after the restart %s, before it %s", got, before)
		}
		m := dialed(t, s.SMTP.Addr())
		m.envelope("a@b")
		m.send(mailText("Hi", "1@x") + ".\r\n")
		m.want("250")
		tok, err := fetch(t, account(t, s.Token))
		if err != nil {
			t.Fatal(err)
		}
		if status, _, b, err := post(t.Context(), c, s.FCM.URL()+"/v1/projects/stormpost-dev/messages:send", tok.AccessToken, `{"message":{"token":"t"}}`); status != 200 || err != nil {
			t.Fatalf("%d %s %v", status, b, err)
		}
		if err := s.Store.Wait(t.Context(), 2*run); err != nil {
			t.Fatal(err)
		}
		before = get(t, c, s.InboxURL+"/messages")
		if n := strings.Count(before, `"channel":"email"`); n != run {
			t.Fatalf("%d emails in %s", n, before)
		}
		c.CloseIdleConnections()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func get(t testing.TB, c *http.Client, url string) string {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%s: %s %v", url, resp.Status, err)
	}
	return string(b)
}

func TestStartAllFailsCleanly(t *testing.T) {
	taken := startSMTP(t, SMTPOptions{})
	s, err := StartAll(t.Context(), Config{Dir: t.TempDir(), InboxAddr: taken.Addr()})
	if err == nil || s != nil {
		t.Fatalf("started on an address in use: %v", err)
	}
}
