package httpapi_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stormpost/stormpost/ingest/httpapi"
	"github.com/stormpost/stormpost/internal/message"
)

func TestAuditOfLanes(t *testing.T) {
	f := newFixture(t)
	type account struct {
		Lane           string
		Accepted, Sent int64
		AddsUp         bool `json:"adds_up"`
	}
	type audit struct {
		Total account
		Lanes []account
	}
	n := len(message.Lanes())
	got := decodeInto[audit](t, f.do("GET", "/v1/audit", "operator", ""), 200)
	if len(got.Lanes) != n || got.Total != (account{"all", int64(2 * n), int64(2 * n), true}) || got.Lanes[0] != (account{"transactional.email", 2, 2, true}) {
		t.Errorf("audit of all: %+v", got)
	}
	got = decodeInto[audit](t, f.do("GET", "/v1/audit?lane=trigger.push", "operator", ""), 200)
	if len(got.Lanes) != 1 || got.Total != (account{"trigger.push", 2, 2, true}) || got.Lanes[0] != got.Total {
		t.Errorf("audit of one: %+v", got)
	}
	for query, field := range map[string]string{"?lane=fast.email": "lane", "?lane=": "lane", "?lane=trigger.push&lane=trigger.email": "lane", "?lanes=x": "lanes"} {
		wantProblem(t, f.do("GET", "/v1/audit"+query, "operator", ""), 422, field)
	}

	lines := strings.Split(strings.TrimSpace(string(f.do("GET", "/v1/audit", "operator", "", "Accept", "application/x-ndjson").body)), "\n")
	var last struct {
		Audit *audit
		Error *problem
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.Audit == nil || !last.Audit.Total.AddsUp || !strings.Contains(lines[0], `"total":12`) {
		t.Errorf("lines: %v %s", err, lines)
	}
	for known, want := range map[bool]string{true: `{"all":3,"trigger.email":3,"trigger.push":0}`, false: `{"all":null,"trigger.email":null,"trigger.push":null}`} {
		lane := message.Lane{Class: message.Trigger, Channel: message.ChannelEmail}
		its := journal{&message.Journaled{Submission: &message.Submission{Lane: lane, Recipients: make([]string, 3)}}, known}
		f := newFixture(t, func(c *httpapi.Config) { c.Journal = its })
		type view struct {
			Lane      string
			Journaled *int64
		}
		got := decodeInto[struct {
			Total view
			Lanes []view
		}](t, f.do("GET", "/v1/audit", "operator", ""), 200)
		only := map[string]*int64{}
		for _, v := range append(got.Lanes, got.Total) {
			if v.Lane == "all" || strings.HasPrefix(v.Lane, "trigger") {
				only[v.Lane] = v.Journaled
			}
		}
		if b, err := json.Marshal(only); err != nil || string(b) != want {
			t.Errorf("only journaled: %s, want %s", b, want)
		}
	}
	f.parked = map[message.Lane]int64{{Class: message.Trigger, Channel: message.ChannelPush}: 3, {}: 1}
	for query, want := range map[string][]int64{"": {0, 0, 0, 3, 0, 0, 4}, "?lane=trigger.push": {3, 3}, "?lane=trigger.email": {0, 0}} {
		type view struct {
			Parked *int64
			AddsUp bool `json:"adds_up"`
		}
		got := decodeInto[struct {
			Total view
			Lanes []view
		}](t, f.do("GET", "/v1/audit"+query, "operator", ""), 200)
		for i, v := range append(got.Lanes, got.Total) {
			if v.Parked == nil || *v.Parked != want[i] || !v.AddsUp {
				t.Errorf("parked%s: %+v, want %v", query, v, want)
			}
		}
	}
	f.fail = message.ErrUnavailable
	wantProblem(t, f.do("GET", "/v1/audit", "operator", ""), 503)
	b := f.do("GET", "/v1/audit", "operator", "", "Accept", "application/x-ndjson").body
	if err := json.Unmarshal(b, &last); err != nil || last.Error == nil || last.Error.Status != 503 {
		t.Errorf("line: %v %s", err, b)
	}
}
