package sim

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

func startResend(t *testing.T, store *Store) *ResendServer {
	t.Helper()
	s, err := StartResend(t.Context(), ResendOptions{Store: store, Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestResendRefuses(t *testing.T) {
	store := openStore(t, t.TempDir())
	s := startResend(t, store)
	c := httpClient(t, &http.Transport{})
	const good = `{"from":"A <a@b.example>","to":"c@d.example","subject":"s","text":"t"}`
	for _, tc := range []struct {
		what, method, path, key, body string
		status                        int
		name                          string
	}{
		{"no key", "POST", "/emails", "", good, 401, "missing_api_key"},
		{"wrong key", "POST", "/emails", "x", good, 403, "invalid_api_key"},
		{"another path", "POST", "/email", "k", good, 404, "not_found"},
		{"another method", "GET", "/emails", "k", "", 405, "method_not_allowed"},
		{"no JSON", "POST", "/emails", "k", `{`, 400, "validation_error"},
		{"more", "POST", "/emails", "k", good + "x", 400, "validation_error"},
		{"unknown field", "POST", "/emails", "k", `{"too":1}`, 400, "validation_error"},
		{"no from", "POST", "/emails", "k", strings.Replace(good, `"from"`, `"html"`, 1), 422, "missing_required_field"},
		{"no to", "POST", "/emails", "k", strings.Replace(good, `"c@d.example"`, `[]`, 1), 422, "missing_required_field"},
		{"no subject", "POST", "/emails", "k", strings.Replace(good, `"s"`, `""`, 1), 422, "missing_required_field"},
		{"no text", "POST", "/emails", "k", strings.Replace(good, `"t"`, `""`, 1), 422, "missing_required_field"},
		{"bad from", "POST", "/emails", "k", strings.Replace(good, `a@b.example`, `ab`, 1), 422, "invalid_from_address"},
		{"bad to", "POST", "/emails", "k", strings.Replace(good, `c@d.example`, `cd`, 1), 422, "validation_error"},
		{"empty file", "POST", "/emails", "k", strings.Replace(good, `"text":"t"`, `"text":"t","attachments":[{"filename":"a"}]`, 1), 422, "invalid_attachment"},
		{"bad tag", "POST", "/emails", "k", strings.Replace(good, `"text":"t"`, `"text":"t","tags":[{"name":"a b","value":"c"}]`, 1), 422, "validation_error"},
	} {
		r, err := http.NewRequest(tc.method, s.URL()+tc.path, strings.NewReader(tc.body))
		if err != nil {
			t.Fatal(err)
		}
		if tc.key != "" {
			r.Header.Set("Authorization", "Bearer "+tc.key)
		}
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		var a struct {
			StatusCode int
			Name       string
		}
		err = json.NewDecoder(resp.Body).Decode(&a)
		resp.Body.Close()
		if err != nil || resp.StatusCode != tc.status || a.Name != tc.name || a.StatusCode != tc.status {
			t.Errorf("%s: %d %+v, %v; want %d %s", tc.what, resp.StatusCode, a, err, tc.status, tc.name)
		}
	}
	if store.Count() != 0 {
		t.Errorf("%d were taken", store.Count())
	}
}

func TestSESRefuses(t *testing.T) {
	store := openStore(t, t.TempDir())
	s, err := StartSES(t.Context(), SESOptions{Store: store})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c := httpClient(t, &http.Transport{})
	body := func(to, raw string) string {
		return fmt.Sprintf(`{"FromEmailAddress":"a@b.example","Destination":{"ToAddresses":[%s]},"Content":{"Raw":{"Data":%q}}}`,
			to, base64.StdEncoding.EncodeToString([]byte(raw)))
	}
	const to, mail = `"c@d.example"`, "From: a@b.example\r\nMessage-ID: <x@y>\r\nSubject: s\r\n\r\ntext\r\n"
	for _, tc := range []struct {
		what, body string
		status     int
		kind       string
	}{
		{"good", body(to, mail), 200, ""},
		{"no JSON", "{", 400, "BadRequestException"},
		{"unknown field", `{"From":1}`, 400, "BadRequestException"},
		{"no message", body(to, ""), 400, "BadRequestException"},
		{"nobody", body("", mail), 400, "BadRequestException"},
		{"51", body(to+strings.Repeat(","+to, 50), mail), 400, "BadRequestException"},
		{"not ASCII", body(`"zoë@d.example"`, mail), 400, "BadRequestException"},
		{"long line", body(to, mail+strings.Repeat("x", 999)+"\r\n"), 400, "BadRequestException"},
		{"no header", body(to, "text"), 400, "BadRequestException"},
		{"no From", body(to, "Subject: s\r\n\r\ntext"), 400, "MessageRejected"},
	} {
		status, header, _, err := post(t.Context(), c, s.URL()+"/v2/email/outbound-emails", "any", tc.body)
		if err != nil || status != tc.status || header.Get("x-amzn-ErrorType") != tc.kind {
			t.Errorf("%s: %d %s, %v; want %d %s", tc.what, status, header.Get("x-amzn-ErrorType"), err, tc.status, tc.kind)
		}
	}
	if all := store.List(0, nil); len(all) != 1 || all[0].MessageID != "x@y" || all[0].Subject != "s" || all[0].To != "c@d.example" {
		t.Errorf("taken: %+v", all)
	}
}

// Each documented error can be asked for by its name or its status.
func TestEmailFaultsAnswer(t *testing.T) {
	store := openStore(t, t.TempDir())
	resend := startResend(t, store)
	ses, err := StartSES(t.Context(), SESOptions{Store: store})
	if err != nil {
		t.Fatal(err)
	}
	defer ses.Close()
	c := httpClient(t, &http.Transport{})
	for name, e := range resendErrors {
		setFaults(t, resend, Fault{Step: StepHeaders, Do: Answer, Error: name})
		if status, _, b, err := post(t.Context(), c, resend.URL()+"/emails", "k", "{}"); err != nil || status != e.status || !strings.Contains(string(b), name) {
			t.Errorf("%s: %d %s, %v", name, status, b, err)
		}
	}
	for name, want := range sesErrors {
		setFaults(t, ses, Fault{Step: StepHeaders, Do: Answer, Error: name})
		if status, h, _, err := post(t.Context(), c, ses.URL()+"/v2/email/outbound-emails", "k", "{}"); err != nil || status != want || h.Get("x-amzn-ErrorType") != name {
			t.Errorf("%s: %d %v, %v", name, status, h, err)
		}
	}
	for _, s := range []struct {
		f    interface{ SetFaults(...Fault) error }
		post string
	}{{resend, resend.URL() + "/emails"}, {ses, ses.URL() + "/v2/email/outbound-emails"}} {
		setFaults(t, s.f, Fault{Step: StepHeaders, Do: Answer, Code: 503})
		if status, _, _, err := post(t.Context(), c, s.post, "k", "{}"); err != nil || status != 503 {
			t.Errorf("%s: %d, %v", s.post, status, err)
		}
		if err := s.f.SetFaults(Fault{Step: StepHeaders, Do: Answer, Error: "NoSuchError"}); err == nil {
			t.Error("an error that nobody documents, without a status")
		}
	}
}
