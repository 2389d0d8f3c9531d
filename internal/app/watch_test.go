package app

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stormpost/stormpost/internal/incident"
	"github.com/stormpost/stormpost/internal/watch"
)

// A process that stops doesn't take that for the end of what is wrong, nor for
// something new; what is open is there after its restart.
func TestStoppingResolvesNothing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "incidents.json")
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		e := incident.New(incident.Config{File: file, Log: log})
		var stopping atomic.Bool // then nobody waits for the provider, and no worker beats
		w := &watching{engine: e, watch: watch.New(e, log, watch.Check{
			Kinds: []incident.Kind{incident.Provider, incident.NoWorker},
			Look: func(context.Context) ([]incident.Condition, error) {
				if stopping.Load() {
					return []incident.Condition{{Kind: incident.NoWorker}}, nil
				}
				return []incident.Condition{{Kind: incident.Provider, Subject: "smtp"}}, nil
			},
		})}
		ctx, stop := context.WithCancel(t.Context())
		house, end := context.WithCancel(t.Context())
		g := newGroup()
		w.run(ctx, house, g)
		time.Sleep(10 * time.Second)
		open := func(when string) {
			t.Helper()
			if all := e.Open(); len(all) != 1 || all[0].Cause != "provider/smtp" {
				t.Errorf("%s: %+v", when, all)
			}
		}
		open("at work")
		stop()
		stopping.Store(true)
		time.Sleep(time.Minute)
		open("after a minute of stopping")
		end()
		if err := g.wait(); err != nil {
			t.Error(err)
		}
		e = incident.New(incident.Config{File: file, Log: log})
		open("after the restart")
	})
}
