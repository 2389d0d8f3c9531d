package app

import (
	"errors"
	"fmt"
	"net/http"
	"sync"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/ingest/httpapi"
)

var errNotTried = errors.New("it has not signed in yet")

// readiness is which routes of a starting process have signed in. A route that
// did once stays ready: what goes wrong later is an incident, and taking the
// process away would not help.
type readiness struct {
	mu     sync.Mutex
	routes []string
	why    map[string]error // nil: it has
}

func newReadiness(uses []signIn) *readiness {
	r := &readiness{why: make(map[string]error)}
	for _, u := range uses {
		r.routes = append(r.routes, u.route)
		r.why[u.route] = errNotTried
	}
	return r
}

func (r *readiness) set(route string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.why[route] = err
}

// checks is a check for each route. A service that can't be reached says nothing
// about the credential, which is usable then as far as anyone can know: it must
// not keep a process from accepting.
func (r *readiness) checks() (all []httpapi.Check) {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, route := range r.routes {
		err := r.why[route]
		if errors.Is(err, delivery.ErrUnreachable) {
			err = nil
		}
		all = append(all, httpapi.Check{Name: "credential of " + route, Err: err})
	}
	return all
}

// readyz answers on the metrics' listener, for processes without the API.
func (p *process) readyz(w http.ResponseWriter, r *http.Request) {
	var failed []string
	for _, c := range p.ready(r.Context()) {
		if c.Err != nil {
			failed = append(failed, fmt.Sprintf("%s: %v", c.Name, c.Err))
		}
	}
	if failed == nil {
		fmt.Fprintln(w, "ok")
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	for _, f := range failed {
		fmt.Fprintln(w, f)
	}
}
