package credential

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A token server that repeats the request puts no secret into an error, a log or
// a status: neither as it is, nor as it stands in the form or in HTTP Basic.
func TestOAuth2RefusalShowsNoSecret(t *testing.T) {
	for _, inBody := range []bool{true, false} {
		var basic string
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			form, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			basic = strings.TrimPrefix(r.Header.Get("Authorization"), "Basic ")
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(400)
			fmt.Fprintf(w, `{"error":"invalid_client","error_description":"no: %s %s"}`, basic, form)
		}))
		var log bytes.Buffer
		logger := slog.New(slog.NewTextHandler(&log, nil))
		key := func(name, value string) *Credential {
			c := New(Config{Name: name, Source: Fixed("test", value), Logger: logger})
			t.Cleanup(c.Close)
			return c
		}
		o := &OAuth2{URL: server.URL, ClientID: "storm:post", Secret: key("secret", "CANARY+1/="), Refresh: key("refresh", "CANARY+2/="), InBody: inBody}
		_, err := o.Fetch(t.Context())
		server.Close()
		shown := fmt.Sprintf("%v %s %+v %+v", err, log.String(), o.Secret.Status(), o.Refresh.Status())
		if err == nil || !strings.Contains(shown, "no: ") || strings.Contains(shown, "CANARY") || basic != "" && strings.Contains(shown, basic) || inBody != (basic == "") {
			t.Errorf("in the body %t: shown: %s", inBody, shown)
		}
	}
}
