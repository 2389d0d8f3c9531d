//go:build linux

package app_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stormpost/stormpost/internal/sim"
)

// startElsewhere starts it once more, after a stop: all is as it was. And elsewhere
// is where it sends now.
func (d *devRun) startElsewhere(l *load) {
	d.t.Helper()
	elsewhere := sendElsewhere(d.t)
	d.start("--smtp", elsewhere.smtp, "--fcm", elsewhere.fcm)
	in := d.inbox()
	for name := range l.push {
		if in[name] > 1 {
			d.t.Errorf("%s came %d times", name, in[name])
		}
	}
	d.submit("other-email", false)
	d.submit("other-push", true)
	d.await("both are elsewhere", func() bool { return elsewhere.has("other-email") && elsewhere.has("other-push") })
	if now := d.inbox(); len(now) != len(in) {
		d.t.Errorf("the inbox has %d subjects, and had %d", len(now), len(in))
	}
}

// elsewhere is an SMTP server and an FCM that are not dev's.
type elsewhere struct {
	smtp, fcm string
	store     *sim.Store

	mu     sync.Mutex
	pushes []string
}

func sendElsewhere(t *testing.T) *elsewhere {
	t.Helper()
	store, err := sim.OpenStore(t.TempDir(), sim.StoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	server, err := sim.StartSMTP(t.Context(), sim.SMTPOptions{Store: store})
	if err != nil {
		t.Fatal(err)
	}
	e := &elsewhere{smtp: server.Addr(), store: store}
	fcm := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		e.mu.Lock()
		defer e.mu.Unlock()
		if strings.HasSuffix(r.URL.Path, "/messages:send") && strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") {
			e.pushes = append(e.pushes, string(body))
			fmt.Fprint(w, `{"name":"projects/p/messages/1"}`)
		}
	}))
	e.fcm = fcm.URL
	t.Cleanup(func() {
		fcm.Close()
		if err := errors.Join(server.Close(), store.Close()); err != nil {
			t.Error(err)
		}
	})
	return e
}

func (e *elsewhere) has(subject string) (found bool) {
	_ = e.store.All(func(m sim.Taken) error {
		found = found || m.Subject == subject
		return nil
	})
	e.mu.Lock()
	defer e.mu.Unlock()
	return found || slices.ContainsFunc(e.pushes, func(p string) bool { return strings.Contains(p, `"`+subject+`"`) })
}
