//go:build linux

package app_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// load is what was submitted while the process was killed.
type load struct {
	mu       sync.Mutex
	push     map[string]bool // by name: is it a push?
	answered map[string]bool
}

func (l *load) unanswered() map[string]bool {
	left := make(map[string]bool)
	for name, push := range l.push {
		if !l.answered[name] {
			left[name] = push
		}
	}
	return left
}

// killUnderLoad submits from many goroutines while the providers answer late,
// and kills the process when hundreds were accepted and some are at a provider.
func (d *devRun) killUnderLoad() *load {
	d.t.Helper()
	for _, server := range []string{"smtp", "fcm"} {
		d.misbehave(server, map[string]any{"step": "reply", "do": "slow", "delay": "300ms"})
	}
	l, wait := d.underLoad("load", 400)
	if err := d.cmd.Process.Kill(); err != nil {
		d.t.Fatal(err)
	}
	<-d.ended
	wait()
	return l
}

// misbehave sets a simulator's faults.
func (d *devRun) misbehave(server string, faults ...map[string]any) {
	d.t.Helper()
	change := map[string]any{"server": server, "faults": append([]map[string]any{}, faults...)}
	if status, err := d.call(http.MethodPost, d.addr.Inbox+"/faults", "", change, nil); err != nil || status/100 != 2 {
		d.t.Fatalf("faults of %s: %d %v", server, status, err)
	}
}

// underLoad submits from many goroutines until dev is gone, for which wait waits,
// and returns when so many were accepted.
func (d *devRun) underLoad(prefix string, accepted int64) (l *load, wait func()) {
	d.t.Helper()
	l = &load{push: make(map[string]bool), answered: make(map[string]bool)}
	enough := make(chan struct{})
	var count atomic.Int64
	var submitters sync.WaitGroup
	for w := range 8 {
		submitters.Go(func() {
			for i := 0; ; i++ {
				name, push := fmt.Sprintf("%s-%d-%d", prefix, w, i), i%2 == 0
				l.mu.Lock()
				l.push[name] = push
				l.mu.Unlock()
				if d.try(name, push) != nil {
					return // it is gone
				}
				l.mu.Lock()
				l.answered[name] = true
				l.mu.Unlock()
				if count.Add(1) == accepted {
					close(enough)
				}
			}
		})
	}
	select {
	case <-enough:
	case <-time.After(time.Minute):
		d.t.Errorf("only %d accepted in a minute", count.Load())
	}
	return l, submitters.Wait
}

// account waits until everything that was accepted is in the inbox, or in
// doubt; and nothing is there twice.
func (d *devRun) account(l *load) {
	d.t.Helper()
	d.forgetKilled()
	inDoubt := make(map[string]bool)
	var in map[string]int
	d.await("all is in the inbox or in doubt", func() bool {
		in = d.inbox()
		for name := range l.push {
			if in[name] == 0 && !inDoubt[name] {
				inDoubt = d.doubts()
				return false
			}
		}
		return len(inDoubt) > 0 || len(d.doubts()) > 0
	})
	d.await("nothing more will come", func() bool { return d.open() == 0 })
	in = d.inbox()
	for name := range l.push {
		if in[name] > 1 {
			d.t.Errorf("%s came %d times", name, in[name])
		}
	}
	if in["first-email"] != 1 || in["first-push"] != 1 {
		d.t.Errorf("the first ones came %d and %d times", in["first-email"], in["first-push"])
	}
	d.t.Logf("%d accepted, %d in doubt", len(l.push), len(d.doubts()))
}

// open is how many messages may still be handed over.
func (d *devRun) open() int {
	d.t.Helper()
	var audit struct {
		Total struct{ Queued, Waiting, Sending int }
	}
	d.operator("/v1/audit", &audit)
	return audit.Total.Queued + audit.Total.Waiting + audit.Total.Sending
}

// forgetKilled spares the test the ten minutes in which the killed worker might
// still have had an answer from its relay.
func (d *devRun) forgetKilled() {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, d.addr.DSN)
	if err != nil {
		d.t.Fatal(err)
	}
	defer conn.Close(ctx)
	tag, err := conn.Exec(ctx, `update process set give_up = '1s' where id < (select max(id) from process where name like '%:' || $1::text)`, fmt.Sprint(d.addr.PID))
	if err != nil || tag.RowsAffected() == 0 {
		d.t.Fatalf("%s %v", tag, err)
	}
}

// operator reads what only an operator may.
func (d *devRun) operator(path string, out any) {
	d.t.Helper()
	if status, err := d.callAs(d.addr.OperatorKey, http.MethodGet, d.addr.API+path, "", nil, out); err != nil || status != http.StatusOK {
		d.t.Fatalf("%s: %d %v", path, status, err)
	}
}

// doubts is the subjects of messages in doubt.
func (d *devRun) doubts() map[string]bool {
	d.t.Helper()
	found := make(map[string]bool)
	for cursor := ""; ; {
		var page struct {
			Items []struct{ Message struct{ To string } }
			Next  string
		}
		d.operator("/v1/doubts?limit=200&cursor="+cursor, &page)
		for _, item := range page.Items {
			name := strings.TrimSuffix(strings.TrimPrefix(item.Message.To, "token-"), "@example.net")
			found[name] = true
		}
		if cursor = page.Next; cursor == "" {
			return found
		}
	}
}
