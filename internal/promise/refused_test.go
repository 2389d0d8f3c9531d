//go:build linux

package promise

import (
	"net/http"
	"testing"
	"time"
)

// What was answered 202 and the ledger then refuses is not 404: it is held, counted and
// signalled, until it is submitted again and accepted.
func TestJournaledAndRefused(t *testing.T) {
	s := newStage(t)
	db := s.conn()
	run(t, db, `set default_transaction_read_only = off`)
	api := s.start("api").api
	s.start("worker,recovery")
	c := newClient(t, s.key, func() string { return api })
	submitAll(t, c, 10, mixed("before"))
	readOnly(t, db)
	waitAway(t, c, api)
	o := order{Name: "refused", Stream: "refused"}
	a, err := c.post(t.Context(), api, o, o.Name)
	if err != nil || a.status != http.StatusAccepted || a.Messages[0].State != "journaled" {
		t.Fatalf("%+v %v", a, err)
	}
	run(t, db, `create function refuse() returns trigger language plpgsql as $$ begin
		if new.stream = (select id from stream where name = 'refused') then raise 'not this one' using errcode = 'data_exception'; end if; return new; end $$;
		create trigger refuse before insert on message for each row execute function refuse()`)
	run(t, db, `do $$ begin execute format('alter database %I reset default_transaction_read_only', current_database()); end $$`)
	run(t, db, others)
	i := s.opens(api, "held/parked", time.Now().Add(30*time.Second))
	if status, state := s.look(api, a.Messages[0].ID); status != http.StatusOK || state != "held" || i.Count != 1 {
		t.Errorf("%d %s, %+v", status, state, i)
	}
	var audit struct {
		Total struct {
			Parked int64
			AddsUp bool `json:"adds_up"`
		}
	}
	if s.get(api+"/v1/audit", &audit); audit.Total.Parked != 1 || !audit.Total.AddsUp {
		t.Errorf("audit: %+v", audit)
	}
	run(t, db, `drop trigger refuse on message`)
	again, err := c.submit(t.Context(), o)
	if err != nil || again.Messages[0].ID != a.Messages[0].ID {
		t.Fatalf("%+v %v", again, err)
	}
	s.settle(c, c.urls, time.Minute)
	s.resolves(api, i)
}
