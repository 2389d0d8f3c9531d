package config

import (
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/stormpost/stormpost/internal/message"
)

// mostRoutes bounds delivery.routes.
const mostRoutes = 1000

// Route is which providers some messages go to.
type Route struct {
	Channel   string   `koanf:"channel"`   // email or push
	Class     string   `koanf:"class"`     // transactional, trigger or campaign; empty: all
	Tenant    string   `koanf:"tenant"`    // name of a tenant; empty: all
	Providers []string `koanf:"providers"` // in order of preference, each configured for the channel; of a push, those that take its platform
}

var tenantName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// Parse is the route's channel and class, which is 0 for all.
func (r *Route) Parse() (ch message.Channel, class message.Class, err error) {
	if ch, err = message.ParseChannel(r.Channel); err != nil {
		return 0, 0, fmt.Errorf("channel: want email or push, not %q", r.Channel)
	}
	if r.Class != "" {
		if class, err = message.ParseClass(r.Class); err != nil {
			return 0, 0, fmt.Errorf("class: want transactional, trigger or campaign, not %q", r.Class)
		}
	}
	if r.Tenant != "" && !tenantName.MatchString(r.Tenant) {
		return 0, 0, errors.New("tenant: want 1 to 63 of a-z, 0-9 and -, not starting with -")
	}
	return ch, class, nil
}

func (c *Config) validateRoutes(bad func(key, format string, args ...any)) {
	if n := len(c.Delivery.Routes); n > mostRoutes {
		bad("delivery.routes", "want %d at most, not %d", mostRoutes, n)
		return
	}
	for i := range c.Delivery.Routes {
		r, key := &c.Delivery.Routes[i], fmt.Sprintf("delivery.routes[%d]", i)
		ch, _, err := r.Parse()
		if err != nil {
			bad(key, "%v", err)
			continue
		}
		if len(r.Providers) == 0 {
			bad(key+".providers", "names none")
		}
		there := c.providers(ch)
		for j, name := range r.Providers {
			key := fmt.Sprintf("%s.providers[%d]", key, j)
			if !slices.Contains(there, name) {
				bad(key, "no provider %q is configured for %s, %s", name, ch, only(there))
			}
			if slices.Contains(r.Providers[:j], name) {
				bad(key, "names %s again", name)
			}
		}
	}
}
