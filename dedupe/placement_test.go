package dedupe_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

func TestOneEvacuationAtATime(t *testing.T) {
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	ctx := t.Context()
	if all, err := l.Placements(ctx); err != nil || len(all) != 0 {
		t.Fatal(all, err)
	}
	e, done, err := l.BeginEvacuation(ctx, "b", "alice")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.BeginEvacuation(ctx, "c", "bob"); !errors.Is(err, message.ErrEvacuating) {
		t.Errorf("a second one: %v", err)
	}
	lane := message.Lane{Class: message.Trigger, Channel: message.ChannelPush}
	p, err := l.MoveLane(ctx, e, message.Placement{Lane: lane, By: "alice", Rate: 7})
	if err != nil || p.Cluster != "b" || p.Rate != 7 || p.Mark.Lane() != lane {
		t.Fatalf("%+v %v", p, err)
	}
	done() // as a crash does
	rate := func(want int) {
		t.Helper()
		if all, err := l.Placements(ctx); err != nil || all[lane].Rate != want {
			t.Errorf("%+v %v, want a rate of %d", all[lane], err, want)
		}
	}
	rate(7)
	exec(t, dsn, `update lane set cursor = $1 where code = $2`, int64(p.Mark), int16(lane.Code()))
	rate(0) // nothing is left of its backlog

	again, done, err := l.BeginEvacuation(ctx, "b", "alice")
	if err != nil || again.ID != e.ID {
		t.Fatalf("not gone on with: %+v %v", again, err)
	}
	done()
	other, done, err := l.BeginEvacuation(ctx, "c", "bob")
	if err != nil || other.ID == e.ID {
		t.Fatalf("%+v %v", other, err)
	}
	defer done()
	if _, err := l.MoveLane(ctx, e, message.Placement{Lane: lane, By: "alice"}); err == nil {
		t.Error("one that was overrun moves lanes")
	}
	if p, err = l.MoveLane(ctx, other, message.Placement{Lane: lane, By: "bob", Rate: 3}); err != nil || p.Cluster != "c" {
		t.Errorf("%+v %v", p, err)
	}
	if err := l.EndEvacuation(ctx, other); err != nil {
		t.Fatal(err)
	}
	if open, err := l.OpenEvacuation(ctx); open != nil || err != nil {
		t.Errorf("%+v %v", open, err)
	}
	if all, err := l.Placements(ctx); err != nil || len(all) != 1 || all[lane].Cluster != "c" || all[lane].Rate != 0 {
		t.Errorf("%+v %v", all, err)
	}
}

func TestSightings(t *testing.T) {
	l := ledgertest.Open(t, ledgertest.DSN(t))
	if err := l.Sight(t.Context(), map[string]bool{"main": true, "b": false}); err != nil {
		t.Fatal(err)
	}
	if err := l.Sight(t.Context(), map[string]bool{"main": true, "b": false}); err != nil {
		t.Fatal(err)
	}
	all, err := l.Sightings(t.Context(), time.Minute)
	if err != nil || all["main"] != (message.ClusterSeen{Away: 1}) || all["b"] != (message.ClusterSeen{Well: 1}) {
		t.Errorf("%+v %v", all, err)
	}
}

// What a cluster holds is the ledger's also when retention has dropped it, or a
// reconciliation has put it elsewhere.
func TestKnown(t *testing.T) {
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	s := ledgertest.Email(t, ledgertest.Tenant(t, l, "acme"), "k", "s", "a@example.com")
	there := ledgertest.Items(s, accept(t, l, s))[0]
	moved, stranger, other := there, there, there
	moved.Position += 1 << 10
	stranger.ID[0]++
	other.ID[20]++ // another request's under the same key
	known := func(want ...bool) {
		t.Helper()
		got, err := l.Known(t.Context(), []message.Item{there, moved, stranger, other})
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%v %v, want %v", got, err, want)
		}
	}
	known(true, true, false, false)
	exec(t, dsn, `update lane set floor = $1 where code = $2`, int64(there.Position), int16(there.Position.Lane().Code()))
	known(true, true, true, true)
}

// What is left of a lane is what nobody has claimed, and has no leave of its own.
func TestLaneLeft(t *testing.T) {
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	claimed := firstItem(t, l, tenant, "claimed")
	claim(t, l, claimed, message.Claimed)
	exec(t, dsn, `insert into waiting (n, no, lane, due) values ($1, 1, $2, now())`, int64(claimed.Position), int16(claimed.Position.Lane().Code())) // used, as a race leaves it
	first := firstItem(t, l, tenant, "first")
	scheduled := ledgertest.Email(t, tenant, "scheduled", "s", "a@example.com")
	scheduled.SendAt = time.Now().Add(time.Minute)
	accept(t, l, scheduled)
	firstItem(t, l, tenant, "second")
	for mark, want := range map[message.Position]int64{0: 2, first.Position: 1, claimed.Position: 0} {
		if n, err := l.LaneLeft(t.Context(), first.Position.Lane(), mark); err != nil || n != want {
			t.Errorf("up to %s: %d %v, want %d", mark, n, err, want)
		}
	}
}
