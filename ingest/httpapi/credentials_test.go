package httpapi_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/ingest/httpapi"
	"github.com/stormpost/stormpost/internal/credential"
)

// signIns is a credential of a fixed password, which a route refuses.
type signIns struct{ c *credential.Credential }

func (s signIns) List() []credential.Status { return []credential.Status{s.c.Status()} }

func (s signIns) Test(_ context.Context, name string) ([]httpapi.CredentialTest, bool) {
	return []httpapi.CredentialTest{{Route: "smtp"}, {Route: "other", Err: errors.New("535 no")}}, name == s.c.Name()
}

func TestCredentials(t *testing.T) {
	c := credential.New(credential.Config{Name: "smtp", Source: credential.Fixed("test", "CANARY")})
	defer c.Close()
	use, err := c.Use(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	use.Rejected("535 CANARY is wrong")
	f := newFixture(t, func(cfg *httpapi.Config) { cfg.Credentials = signIns{c} })
	got := f.do("GET", "/v1/credentials", "operator", "")
	list := decodeInto[struct {
		Items []struct {
			Name, Source, Health, Trouble string
			ExpiresAt                     *time.Time `json:"expires_at"`
			LastUsed                      *time.Time `json:"last_used_at"`
			Rejections                    int
			Generations                   []struct {
				Number       int
				State, Reply string
				Kept         *bool
			}
		}
	}](t, got, 200)
	if len(list.Items) != 1 || list.Items[0].Health != "rejected" || list.Items[0].LastUsed == nil || list.Items[0].ExpiresAt != nil ||
		list.Items[0].Rejections != 1 || len(list.Items[0].Generations) != 1 || list.Items[0].Generations[0].Reply != "535 [secret] is wrong" || list.Items[0].Generations[0].Kept == nil || *list.Items[0].Generations[0].Kept {
		t.Errorf("%+v", list)
	}
	if strings.Contains(string(got.body), "CANARY") {
		t.Errorf("a secret is shown: %s", got.body)
	}
	tested := decodeInto[struct {
		Name  string
		OK    bool
		Tests []struct {
			Route, Error string
			OK           bool
		}
	}](t, f.do("POST", "/v1/credentials/smtp/test", "operator", ""), 200)
	if tested.OK || len(tested.Tests) != 2 || !tested.Tests[0].OK || tested.Tests[1].Error != "535 no" {
		t.Errorf("%+v", tested)
	}
	wantProblem(t, f.do("POST", "/v1/credentials/other/test", "operator", ""), 404)

	none := newFixture(t)
	if list := decodeInto[struct{ Items []struct{} }](t, none.do("GET", "/v1/credentials", "operator", ""), 200); len(list.Items) != 0 {
		t.Errorf("%+v", list)
	}
	wantProblem(t, none.do("POST", "/v1/credentials/smtp/test", "operator", ""), 404)
}
