package sim

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

const (
	goodPostmark = `{"From":"A <a@b.example>","To":"c@d.example","Subject":"s","TextBody":"t","Metadata":{"stormpost_id":"x"}}`
	goodSendGrid = `{"personalizations":[{"to":[{"email":"c@d.example"}],"custom_args":{"stormpost_id":"x"}}],"from":{"email":"a@b.example"},` +
		`"subject":"s","content":[{"type":"text/plain","value":"t"}]}`
)

// startMailSims is one of each, and what each is asked with.
func startMailSims(t *testing.T, store *Store) map[string]*mailServer {
	t.Helper()
	p, err := StartPostmark(t.Context(), MailOptions{Store: store, Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := StartSendGrid(t.Context(), MailOptions{Store: store, Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(); s.Close() })
	return map[string]*mailServer{"postmark": p.mailServer, "sendgrid": s.mailServer}
}

// requestMail makes a request with key and the headers that both vendors want.
func requestMail(t *testing.T, c *http.Client, method, url, key, body string) (int, http.Header, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header = http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json"}}
	if key != "" {
		r.Header.Set("Authorization", "Bearer "+key)
		r.Header.Set("X-Postmark-Server-Token", key)
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

func TestMailAPIsRefuse(t *testing.T) {
	store := openStore(t, t.TempDir())
	sims := startMailSims(t, store)
	c := httpClient(t, &http.Transport{})
	change := strings.Replace
	big := strings.Repeat("x", postmarkMaxText+1)
	for _, tc := range []struct {
		sim, what, method, path, key, body string
		status                             int
		has                                string
	}{
		{"postmark", "no key", "POST", "/email", "", goodPostmark, 401, `"ErrorCode":10`},
		{"postmark", "wrong key", "POST", "/email", "x", goodPostmark, 401, `"ErrorCode":10`},
		{"postmark", "wrong key, server", "GET", "/server", "x", "", 401, `"ErrorCode":10`},
		{"postmark", "server", "GET", "/server", "k", "", 200, `"ID"`},
		{"postmark", "another path", "POST", "/emails", "k", goodPostmark, 404, ""},
		{"postmark", "no JSON", "POST", "/email", "k", "{", 422, `"ErrorCode":402`},
		{"postmark", "more", "POST", "/email", "k", goodPostmark + "x", 422, `"ErrorCode":402`},
		{"postmark", "unknown member", "POST", "/email", "k", change(goodPostmark, "Subject", "Subjekt", 1), 422, `"ErrorCode":402`},
		{"postmark", "bad from", "POST", "/email", "k", change(goodPostmark, "a@b", "ab", 1), 422, `"ErrorCode":300`},
		{"postmark", "bad to", "POST", "/email", "k", change(goodPostmark, "c@d", "cd", 1), 422, `"ErrorCode":300`},
		{"postmark", "not ASCII", "POST", "/email", "k", change(goodPostmark, "c@d", "ü@d", 1), 422, `"ErrorCode":300`},
		{"postmark", "51", "POST", "/email", "k", change(goodPostmark, "c@d.example", "c@d.example"+strings.Repeat(",c@d.example", 50), 1), 422, `"ErrorCode":300`},
		{"postmark", "no text", "POST", "/email", "k", change(goodPostmark, `"TextBody":"t",`, "", 1), 422, `"ErrorCode":300`},
		{"postmark", "too large", "POST", "/email", "k", change(goodPostmark, `:"t"`, `:"`+big+`"`, 1), 422, `"ErrorCode":300`},
		{"postmark", "too large in base64", "POST", "/email", "k", change(goodPostmark, `:"t"`, `:"t","Attachments":[{"Name":"a","ContentType":"a/b","Content":"`+
			strings.Repeat("AAAA", postmarkMaxMessage/4)+`"}]`, 1), 422, `"ErrorCode":300`},
		{"postmark", "metadata", "POST", "/email", "k", change(goodPostmark, `:"x"`, `:"`+big[:81]+`"`, 1), 422, `"ErrorCode":300`},
		{"postmark", "an exe", "POST", "/email", "k", change(goodPostmark, "{", `{"Attachments":[{"Name":"a.EXE","ContentType":"a/b","Content":"eA=="}],`, 1), 422, `"ErrorCode":411`},
		{"postmark", "stream", "POST", "/email", "k", change(goodPostmark, "{", `{"MessageStream":"other",`, 1), 422, `"ErrorCode":1235`},
		{"postmark", "good", "POST", "/email", "k", goodPostmark, 200, `"ErrorCode":0`},
		{"sendgrid", "no key", "POST", "/v3/mail/send", "", goodSendGrid, 401, "authorization required"},
		{"sendgrid", "wrong key", "POST", "/v3/mail/send", "x", goodSendGrid, 401, "authorization grant"},
		{"sendgrid", "wrong key, scopes", "GET", "/v3/scopes", "x", "", 401, "authorization grant"},
		{"sendgrid", "scopes", "GET", "/v3/scopes", "k", "", 200, "mail.send"},
		{"sendgrid", "another path", "POST", "/v3/mail", "k", goodSendGrid, 404, ""},
		{"sendgrid", "another method", "PUT", "/v3/mail/send", "k", goodSendGrid, 405, ""},
		{"sendgrid", "no JSON", "POST", "/v3/mail/send", "k", "{", 400, "Bad Request"},
		{"sendgrid", "no from", "POST", "/v3/mail/send", "k", change(goodSendGrid, `"from":{"email":"a@b.example"},`, "", 1), 400, "from.email"},
		{"sendgrid", "from not ASCII", "POST", "/v3/mail/send", "k", change(goodSendGrid, "a@b.example", "ü@b.example", 1), 400, "from.email"},
		{"sendgrid", "nobody", "POST", "/v3/mail/send", "k", change(goodSendGrid, `{"email":"c@d.example"}`, "", 1), 400, "personalizations"},
		{"sendgrid", "bad to", "POST", "/v3/mail/send", "k", change(goodSendGrid, "c@d.example", "C <c@d.example>", 1), 400, "personalizations"},
		{"sendgrid", "twice", "POST", "/v3/mail/send", "k", change(goodSendGrid, `{"email":"c@d.example"}`, `{"email":"c@d.example"},{"email":"C@d.example"}`, 1), 400, "twice"},
		{"sendgrid", "no subject", "POST", "/v3/mail/send", "k", change(goodSendGrid, `"s"`, `""`, 1), 400, "subject"},
		{"sendgrid", "no text", "POST", "/v3/mail/send", "k", change(goodSendGrid, `"t"`, `""`, 1), 400, "content"},
		{"sendgrid", "order", "POST", "/v3/mail/send", "k", change(goodSendGrid, `[{"type":"text/plain"`, `[{"type":"text/html","value":"h"},{"type":"text/plain"`, 1), 400, "content"},
		{"sendgrid", "reserved", "POST", "/v3/mail/send", "k", change(goodSendGrid, "{", `{"headers":{"X-SG-ID":"1"},`, 1), 400, "reserved"},
		{"sendgrid", "good", "POST", "/v3/mail/send", "k", goodSendGrid, 202, ""},
	} {
		status, _, b := requestMail(t, c, tc.method, sims[tc.sim].URL()+tc.path, tc.key, tc.body)
		if status != tc.status || !strings.Contains(b, tc.has) {
			t.Errorf("%s, %s: %d %.200s; want %d %s", tc.sim, tc.what, status, b, tc.status, tc.has)
		}
	}
	all := store.List(0, nil)
	if len(all) != 2 || all[0].MessageID != "x" || all[1].To != "c@d.example" || all[1].Reference == "" {
		t.Errorf("taken: %+v", all)
	}
}

// Each documented error can be asked for, and any status. What was stored stays
// so, whatever becomes of the answer.
func TestMailAPIsMisbehave(t *testing.T) {
	dir := t.TempDir()
	store := openStore(t, dir)
	c := httpClient(t, &http.Transport{DisableKeepAlives: true})
	stored := 0
	for name, s := range startMailSims(t, store) {
		url, body := s.URL()+"/email", goodPostmark
		if name == "sendgrid" {
			url, body = s.URL()+"/v3/mail/send", goodSendGrid
		}
		for code, e := range s.api.errors {
			setFaults(t, s, Fault{Step: StepBody, Do: Answer, Error: code, To: "c@d.example"})
			if status, _, b := requestMail(t, c, "POST", url, "k", body); status != e.status || !strings.Contains(b, e.text) {
				t.Errorf("%s %s: %d %s", name, code, status, b)
			}
		}
		setFaults(t, s, Fault{Step: StepHeaders, Do: Answer, Code: 503})
		if status, _, _ := requestMail(t, c, "POST", url, "k", body); status != 503 {
			t.Errorf("%s: %d", name, status)
		}
		if err := s.SetFaults(Fault{Step: StepHeaders, Do: Answer, Error: "NoSuchError"}); err == nil {
			t.Error("an error that nobody documents, without a status")
		}
		for _, do := range []Action{Drop, Reset, Partial, Garbage} {
			setFaults(t, s, Fault{Step: StepReply, Do: do})
			r, err := http.NewRequestWithContext(t.Context(), "POST", url, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			r.GetBody = nil
			r.Header = http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json"}, "Authorization": {"Bearer k"}, "X-Postmark-Server-Token": {"k"}}
			if resp, err := c.Do(r); err == nil {
				_, err = io.ReadAll(resp.Body)
				resp.Body.Close()
				if err == nil {
					t.Errorf("%s %s: answered", name, do)
				}
			}
			stored++
		}
	}
	n := 0
	if err := ReadTaken(dir+"/"+TakenFile, func(x Taken) error { n++; return nil }); err != nil || n != stored {
		t.Errorf("%d are on disk, want %d; %v", n, stored, err)
	}
}
