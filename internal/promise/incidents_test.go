//go:build linux

package promise

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/sim"
)

// noticed is by when an incident must be open, from the fault on, or from when
// its objective has passed.
const noticed = 10 * time.Second

// seenIncident is what the API says of one.
type seenIncident struct {
	ID, State, Cause, Severity, Summary, Lane, Runbook, Command string
	Count                                                       int64
	ResolvedAt                                                  *time.Time `json:"resolved_at"`
}

// incidents asks once, without waiting out anything.
func (s *stage) incidents(api, state string) map[string]seenIncident {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, api+"/v1/incidents?limit=200&state="+state, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.oper)
	began := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	var page struct{ Items []seenIncident }
	if err := json.NewDecoder(resp.Body).Decode(&page); err != nil || resp.StatusCode != http.StatusOK {
		s.t.Fatalf("incidents: %s, %v", resp.Status, err)
	}
	if took := time.Since(began); took > 2*time.Second {
		s.t.Errorf("incidents were answered after %s", took)
	}
	all := make(map[string]seenIncident)
	for _, i := range page.Items {
		if _, twice := all[i.Cause]; twice && state == "open" {
			s.t.Errorf("two incidents of %s are open", i.Cause)
		}
		all[i.Cause] = i
	}
	return all
}

// opens waits until an incident of the cause is open.
func (s *stage) opens(api, cause string, by time.Time) seenIncident {
	s.t.Helper()
	for {
		if i, ok := s.incidents(api, "open")[cause]; ok {
			s.t.Logf("%s opened, %s before its time is up: %s", cause, time.Until(by).Round(100*time.Millisecond), i.Summary)
			return i
		}
		if time.Now().After(by) {
			s.t.Fatalf("no incident of %s is open; there are: %v", cause, s.incidents(api, "open"))
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// resolves waits until the incident is resolved.
func (s *stage) resolves(api string, i seenIncident) {
	s.t.Helper()
	for by := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		if now := s.incidents(api, "resolved")[i.Cause]; now.ID == i.ID && now.ResolvedAt != nil {
			return
		}
		if time.Now().After(by) {
			s.t.Fatalf("%s is not resolved; open: %v", i.Cause, s.incidents(api, "open"))
		}
	}
}

// A lane in which nothing moves is an incident 10 s after its objective, and so
// is the provider behind it; both are over by themselves when mail moves.
func TestStallIsAnIncident(t *testing.T) {
	s := newStage(t)
	p := s.start("api,worker,watch", "STORMPOST_INCIDENTS_OBJECTIVE_TRANSACTIONAL=2s")
	c := newClient(t, s.key, func() string { return p.api })
	submitAll(t, c, 20, func(i int) order { return order{Name: fmt.Sprintf("well-%d", i)} })
	s.settle(c, c.urls, time.Minute)

	if err := s.sims.SMTP.Faults.AddFault(sim.Fault{Step: sim.StepConnect, Do: sim.Drop}); err != nil {
		t.Fatal(err)
	}
	// Connections that are open already still take some.
	if err := s.sims.SMTP.Faults.AddFault(sim.Fault{Step: sim.StepMail, Do: sim.Drop}); err != nil {
		t.Fatal(err)
	}
	submitAll(t, c, 60, func(i int) order { return order{Name: fmt.Sprintf("stalled-%d", i)} })
	fault := time.Now()
	down := s.opens(p.api, "provider/smtp", fault.Add(noticed))
	stall := s.opens(p.api, "stall/transactional.email", fault.Add(2*time.Second+noticed))
	if stall.Count < 1 || stall.Lane != "transactional.email" || stall.Severity != "critical" ||
		!strings.HasSuffix(stall.Runbook, "#a-lanes-backlog-grows") || stall.Command == "" || down.Count < 1 {
		t.Errorf("%+v, %+v", stall, down)
	}
	if n := s.gauge(p, `stormpost_incidents_open{kind="stall"}`); n != "1" {
		t.Errorf("the gauge says %q", n)
	}
	s.sims.SMTP.Faults.ClearFaults()
	s.resolves(p.api, stall)
	s.resolves(p.api, down)
	if v := s.settle(c, c.urls, 2*time.Minute); len(v.doubts) > 0 {
		t.Errorf("%d in doubt, although nothing was handed over", len(v.doubts))
	}
	if open := s.incidents(p.api, "open"); len(open) > 0 {
		t.Errorf("still open: %v", open)
	}
}

// gauge is a metric's value.
func (s *stage) gauge(p *process, series string) string {
	s.t.Helper()
	resp, err := http.Get(p.metrics + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return "none"
}

// What the ledger holds against it: a doubt, a lost counter, no worker, and its
// own absence, each noticed in time and over by itself.
func TestLedgerIncidents(t *testing.T) {
	s, pg := newStageWithPostgres(t)
	api := s.start("api,watch").api
	worker := s.start("worker")
	c := newClient(t, s.key, func() string { return api })
	if err := s.sims.SMTP.Faults.AddFault(sim.Fault{Step: sim.StepReply, Do: sim.Drop, Times: 1}); err != nil {
		t.Fatal(err)
	}
	submitAll(t, c, 5, func(i int) order { return order{Name: fmt.Sprintf("mail-%d", i)} })
	doubt := s.opens(api, "in_doubt", time.Now().Add(noticed))
	if doubt.Count != 1 {
		t.Errorf("%+v", doubt)
	}
	s.settle(c, c.urls, time.Minute) // decides it
	s.resolves(api, doubt)

	db := s.conn()
	if _, err := db.Exec(t.Context(), `create table lost as select * from counter; delete from counter`); err != nil {
		t.Fatal(err)
	}
	fault := time.Now()
	if a, err := c.post(t.Context(), api, order{Name: "unnumbered"}, "unnumbered"); err != nil || a.status != http.StatusAccepted || a.Messages[0].State != "journaled" {
		t.Fatalf("%+v, %v", a, err)
	}
	numbering := s.opens(api, "numbering", fault.Add(noticed))
	if _, err := db.Exec(t.Context(), `insert into counter select * from lost`); err != nil {
		t.Fatal(err)
	}
	s.resolves(api, numbering)

	worker.kill()
	gone := s.opens(api, "no_worker", time.Now().Add(noticed))
	s.start("worker")
	s.resolves(api, gone)

	if err := pg.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	away := s.opens(api, "ledger_away", time.Now().Add(noticed))
	if err := pg.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s.resolves(api, away)
}

// With PostgreSQL and Kafka both unreachable, from the start on, incidents open,
// the API tells them, and the webhook gets them, although Alertmanager hangs. A
// restart with the stores back goes on with the same incidents, and ends them.
func TestIncidentsWithBothStoresAway(t *testing.T) {
	s := newStage(t)
	if err := s.start("api").stop(t.Context()); err != nil { // it leaves the keys' snapshot
		t.Fatal(err)
	}
	hooks := make(chan *http.Request, 100)
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(b))
		hooks <- r
	}))
	t.Cleanup(hook.Close)
	hung := make(chan struct{})
	am := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hung }))
	t.Cleanup(am.Close)
	t.Cleanup(func() { close(hung) })
	key := []byte("0123456789abcdef0123456789abcdef")
	secret := t.TempDir() + "/secret"
	if err := os.WriteFile(secret, []byte("whsec_"+base64.StdEncoding.EncodeToString(key)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	sinks := []string{
		"STORMPOST_INCIDENTS_WEBHOOK_URL=" + hook.URL, "STORMPOST_INCIDENTS_WEBHOOK_SECRET=file:" + secret,
		"STORMPOST_INCIDENTS_ALERTMANAGER=" + am.URL,
	}
	closed := closedPort(t)
	began := time.Now()
	p := s.start("api,worker,watch", append(sinks,
		"STORMPOST_DSN=postgres://nobody@"+closed+"/none", "STORMPOST_BROKERS="+closed)...)
	ledger := s.opens(p.api, "ledger_away", began.Add(noticed))
	kafka := s.opens(p.api, "kafka_away", began.Add(noticed))
	told := map[string]bool{}
	for len(told) < 2 {
		select {
		case r := <-hooks:
			body, _ := io.ReadAll(r.Body)
			var e struct {
				Type string
				Data struct{ Cause string }
			}
			if err := json.Unmarshal(body, &e); err != nil || e.Type != "incident.opened" {
				t.Fatalf("%s, %v", body, err)
			}
			mac := hmac.New(sha256.New, key)
			fmt.Fprintf(mac, "%s.%s.%s", r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp"), body)
			if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); r.Header.Get("webhook-signature") != want {
				t.Errorf("signature %q, want %q", r.Header.Get("webhook-signature"), want)
			}
			told[e.Data.Cause] = true
		case <-time.After(time.Until(began.Add(noticed))):
			t.Fatalf("the webhook was told of %v in time", told)
		}
	}
	if !told["ledger_away"] || !told["kafka_away"] {
		t.Errorf("told: %v", told)
	}
	if !strings.Contains(p.logs.String(), `"incident opened"`) {
		t.Error("the log has no incident")
	}
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	p = s.start("api,worker,watch", sinks...)
	s.resolves(p.api, ledger)
	s.resolves(p.api, kafka)
}

// closedPort is an address at which nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
