package app

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// How much of each lane the journals have is told by the API's index, and what
// nobody can tell is left out.
func TestJournaled(t *testing.T) {
	b := newBroker(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := b.EnsureJournals(ctx); err != nil {
		t.Fatal(err)
	}
	c := &cluster{broker: b, clusterUse: clusterUse{tail: b.NewTail()}}
	cs := &clusters{all: []*cluster{c}}
	email := message.Lane{Class: message.Trigger, Channel: message.ChannelEmail}
	tells := func(what string, known int, of int64) {
		t.Helper()
		got, at := cs.journaled()
		if n, there := got[email]; len(got) != known || there != (of >= 0) || there && n != of || time.Since(at) > 10*time.Second {
			t.Errorf("%s: %v as of %s", what, got, at)
		}
	}
	ask := func() {
		t.Helper()
		for _, _, err := cs.backlog(ctx); err != nil; _, _, err = cs.backlog(ctx) { // a coordinator is being chosen
			if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
	}
	tells("nothing is known", 0, -1)
	ask()
	tells("the journals are empty", 6, 0)

	journal, err := b.NewJournal(b.NewTail()) // another process's
	if err != nil {
		t.Fatal(err)
	}
	defer journal.Close()
	content := &message.Content{Email: &message.Email{From: "a@example.com", To: []string{"b@example.net", "c@example.net"}, Text: "x", Options: message.Options{Class: "trigger"}}}
	s, err := message.Submit(1, "k", content, time.Now(), time.Hour)
	if err == nil {
		err = journal.Append(ctx, message.Journaled{Submission: s, AcceptedAt: time.Now()})
	}
	if err != nil {
		t.Fatal(err)
	}
	ask()
	tells("of a class only how many submissions", 4, -1)

	running, end := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = c.tail.Run(running) })
	defer wg.Wait()
	defer end()
	if err := cs.Current(ctx, time.Now()); err != nil {
		t.Fatal(err)
	}
	tells("by the index", 6, 2)
	c.away.Store(true)
	tells("nobody knows when it comes", 5, -1)
	c.away.Store(false)

	other := &cluster{name: "b", broker: b}
	cs.all = append(cs.all, other)
	tells("of another cluster nothing is known", 0, -1)
	other.left.Store(&journalLeft{at: time.Now()})
	tells("it has nothing", 6, 2)
	other.left.Store(&journalLeft{at: time.Now().Add(-leftFresh)})
	tells("it had nothing a while ago", 0, -1)
	other.bare.Store(true)
	tells("it has no journals", 6, 2)
}
