package dedupe_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

// The release before goes on accepting, claiming, recording and canceling after
// `migrate`, by the statements that it has; what it makes, this one reads, and what
// this one has superseded it doesn't send. (`make previous` runs that release's own tests.)
func TestThePreviousReleasesStatements(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	accept(t, l, ledgertest.Email(t, tenant, "first", "s", "a@example.com")) // makes the stream
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var worker int32
	if err := conn.QueryRow(t.Context(), `insert into process (name, give_up) values ($1, $2) returning id`, "previous", time.Minute).Scan(&worker); err != nil {
		t.Fatal(err)
	}
	put := func(s *message.Submission) message.Item {
		t.Helper()
		var first int64
		r := message.Receipt{}
		err := conn.QueryRow(t.Context(), `
			select submission, first from accept_batch(array[$1::uuid], array[$2::bytea], array[$3::smallint], array[$4::int],
				(select array[id] from stream where name = 's'), array[1::smallint], array[$5::bytea], array[null::text], array[false], array[$6::timestamptz],
				array[null::timestamptz], array[1], array[0::smallint], array[$7::text])`,
			[16]byte(s.Key), s.Print[:], int16(s.Lane.Code()), s.Tenant, s.Content, s.ExpiresAt, s.Recipients[0]).Scan(&r.Submission, &first)
		if err != nil {
			t.Fatal(err)
		}
		return ledgertest.Items(s, r)[0]
	}
	takes := func(it message.Item) (verdict int16) {
		t.Helper()
		err := conn.QueryRow(t.Context(), `select verdict from claim_batch(array[$1::bigint], array[1::smallint], array[$2::bytea], array[7::bigint], $3)`,
			int64(it.Position), it.ID[:24], worker).Scan(&verdict)
		if err != nil {
			t.Fatal(err)
		}
		return verdict
	}
	sent, canceled := put(ledgertest.Email(t, tenant, "sent", "s", "a@example.com")), put(ledgertest.Email(t, tenant, "canceled", "s", "a@example.com"))
	if v := takes(sent); v != 1 {
		t.Errorf("verdict %d", v)
	}
	if _, err := conn.Exec(t.Context(), `select record_batch(array[$1::bigint], array[1::smallint], array[1::smallint], array['p'], array['250'], array[''], array[''],
		array[0::float8], array[''], true)`, int64(sent.Position)); err != nil {
		t.Fatal(err)
	}
	state(t, l, sent, message.StateSent)
	var done bool
	if err := conn.QueryRow(t.Context(), `select cancel_message($1, $2)`, int64(canceled.Position), worker).Scan(&done); err != nil || !done {
		t.Errorf("canceled: %v, %v", done, err)
	}
	state(t, l, canceled, message.StateCanceled)
	for range 2 { // what it parks of a journal tells no ids, and is told of all the same
		if _, err := conn.Exec(t.Context(), `insert into parked (source, raw, reason) values ($1, $2, $3)`, journalSource, []byte{1}, "bad row"); err != nil {
			t.Fatal(err)
		}
	}
	if got := waits(t, l); got != "map[parked:2]" {
		t.Errorf("parked by it: %s", got)
	}
	older := accepted(t, l, keyed(t, tenant, "older", "code"))[0]
	accepted(t, l, keyed(t, tenant, "newer", "code"))
	if v := takes(older); v != 2 {
		t.Errorf("a superseded one: verdict %d, want 2 (taken)", v)
	}
}
