package watch

import (
	"context"
	"fmt"
	"time"

	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/incident"
)

// Credentials checks the credentials of this process. One that is of no use, or
// soon won't be, is an incident that names it.
func Credentials(all func() []credential.Status, now func() time.Time) Check {
	since := make(map[string]time.Time)
	return Check{Kinds: []incident.Kind{incident.Credential}, Look: func(context.Context) (found []incident.Condition, _ error) {
		for _, s := range all() {
			if s.Trouble == "" {
				delete(since, s.Name)
				continue
			}
			if since[s.Name].IsZero() {
				since[s.Name] = now()
			}
			c := incident.Condition{
				Kind: incident.Credential, Subject: s.Name, Oldest: now().Sub(since[s.Name]),
				Summary: fmt.Sprintf("credential %s (%s): %s", s.Name, s.Source, s.Trouble),
				Command: "stormpost credentials test " + s.Name,
			}
			if s.Health == credential.Missing || s.Health == credential.Refused {
				c.Severity = incident.Critical
			}
			found = append(found, c)
		}
		return found, nil
	}}
}
