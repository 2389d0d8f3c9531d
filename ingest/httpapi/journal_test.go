package httpapi_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/ingest/httpapi"
	"github.com/stormpost/stormpost/internal/message"
)

type journal struct {
	j     *message.Journaled
	known bool
}

func (j journal) Current(context.Context, time.Time) error { return nil }

func (j journal) Find(message.ID) (*message.Journaled, bool) { return j.j, j.known }

func (j journal) Under(key message.KeyHash) ([]*message.Journaled, bool) {
	return under(key, j.j), j.known
}

func (j journal) Lanes() (map[message.Lane]int64, bool) {
	if j.j == nil {
		return nil, j.known
	}
	return map[message.Lane]int64{j.j.Lane: int64(len(j.j.Recipients))}, j.known
}

func under(key message.KeyHash, j *message.Journaled) []*message.Journaled {
	if j == nil || j.Key != key {
		return nil
	}
	return []*message.Journaled{j}
}

// elsewhere is a journal that knows what another process wrote once it is read.
type elsewhere struct {
	journal
	read *bool
	err  error
}

func (e elsewhere) Find(message.ID) (*message.Journaled, bool) {
	if *e.read {
		return e.j, true
	}
	return nil, true
}

func (e elsewhere) Under(key message.KeyHash) ([]*message.Journaled, bool) {
	if *e.read {
		return under(key, e.j), true
	}
	return nil, true
}

func (e elsewhere) Current(context.Context, time.Time) error {
	*e.read = e.err == nil
	return e.err
}

// What another process has just journaled is not unknown, and where nobody can
// tell, nobody says so.
func TestGetJournaledElsewhere(t *testing.T) {
	sub := message.SubmissionID(message.HashKey(1, "k"), message.Fingerprint{1})
	one, all, byKey := "/v1/messages/"+sub.Message(0).String(), "/v1/messages?submission="+sub.String(), "/v1/messages?idempotency_key=k"
	for _, away := range []error{nil, errors.New("away")} {
		read := false
		its := journal{j: &message.Journaled{Submission: &message.Submission{Tenant: 1, Key: sub.KeyHash(), Lane: message.Lanes()[0], Recipients: make([]string, 1)}, AcceptedAt: time.Now()}}
		f := newFixture(t, func(c *httpapi.Config) { c.Journal = elsewhere{its, &read, away} })
		for _, ask := range []struct {
			method, path string
			found        int
		}{{"GET", one, 200}, {"GET", all, 200}, {"GET", byKey, 200}, {"DELETE", one, 503}} {
			read = false
			a := f.do(ask.method, ask.path, "one", "")
			want := ask.found
			if away != nil {
				want = 503
			}
			if a.StatusCode != want || want == 200 && !strings.Contains(string(a.body), "journaled") {
				t.Errorf("away: %v, %s %s: %d %s", away, ask.method, ask.path, a.StatusCode, a.body)
			}
		}
	}
}

// What each of the two stores says of an id, and what is answered.
func TestGetJournaled(t *testing.T) {
	lane := message.Lane{Class: message.Trigger, Channel: message.ChannelEmail}
	of := func(tenant int32) *message.Journaled {
		return &message.Journaled{Submission: &message.Submission{Tenant: tenant, Key: message.HashKey(1, "k"), Print: message.Fingerprint{1}, Lane: lane, Recipients: make([]string, 2)}, AcceptedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	}
	sub := message.SubmissionID(message.HashKey(1, "k"), message.Fingerprint{1})
	id := sub.Message(0).String()
	for name, test := range map[string]struct {
		journal journal
		ledger  error // nil: it knows no such message
		key     string
		status  int
	}{
		"journaled, ledger away":          {journal{of(1), true}, message.ErrUnavailable, "one", 200},
		"journaled, not entered":          {journal{of(1), true}, nil, "one", 200},
		"journaled, for an operator":      {journal{of(1), true}, nil, "operator", 200},
		"journaled by another tenant":     {journal{of(9), true}, message.ErrUnavailable, "one", 404},
		"not journaled, ledger away":      {journal{nil, true}, message.ErrUnavailable, "one", 503},
		"not journaled, not there":        {journal{nil, true}, nil, "one", 404},
		"journal unknown, ledger away":    {journal{nil, false}, message.ErrUnavailable, "one", 503},
		"journal unknown, ledger says no": {journal{nil, false}, nil, "one", 503},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, func(c *httpapi.Config) { c.Journal = test.journal })
			f.store.failReads = test.ledger
			want := test.status
			if want == 200 {
				want = 503
			}
			if test.ledger == nil {
				wantProblem(t, f.do("DELETE", "/v1/messages/"+id, test.key, ""), want)
			}
			// A list by the submission or its key says the same; nothing is an empty page there.
			for _, query := range []string{"submission=" + sub.String(), "idempotency_key=k&tenant=1"} {
				if test.key != "operator" {
					query = strings.TrimSuffix(query, "&tenant=1")
				}
				switch a := f.do("GET", "/v1/messages?"+query, test.key, ""); {
				case test.status == 200:
					got := decodeInto[list](t, a, 200)
					if len(got.Items) != 2 || got.Items[1]["id"] != id || got.Items[1]["state"] != "journaled" {
						t.Errorf("list: %s", a.body)
					}
				case test.journal.known && test.ledger == nil:
					if got := decodeInto[list](t, a, 200); len(got.Items) != 0 {
						t.Errorf("list: %s", a.body)
					}
				default:
					wantProblem(t, a, 503)
				}
			}
			a := f.do("GET", "/v1/messages/"+id, test.key, "")
			if test.status != 200 {
				wantProblem(t, a, test.status)
				return
			}
			got := decodeInto[map[string]any](t, a, 200)
			if n, ok := got["sequence"]; got["state"] != "journaled" || n != nil || !ok || got["class"] != "trigger" || got["id"] != id ||
				got["accepted_at"] != "2026-01-02T03:04:05Z" || got["expires_at"] != nil {
				t.Errorf("got %v", got)
			}
		})
	}
}
