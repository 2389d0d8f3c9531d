package delivery

import (
	"bytes"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// named is a provider with another name.
type named struct {
	*fakeProvider
	name string
}

func (n named) Name() string { return n.name }

// Each platform's pushes go to its own provider, and only there.
func TestPlatformsHaveTheirProviders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		providers := make(map[string]*fakeProvider)
		start := start(t, l, func(_ *running, c *Config) {
			c.Routes[message.ChannelPush] = nil
			for _, name := range []string{"fcm", "apns", "webpush"} {
				providers[name] = &fakeProvider{ledger: l, channel: message.ChannelPush}
				c.Routes[message.ChannelPush] = append(c.Routes[message.ChannelPush], Route{Provider: named{providers[name], name}, Platforms: []string{name}})
			}
		})
		count := map[string]int64{"fcm": 3, "apns": 2, "webpush": 1}
		for platform, n := range count {
			for range n {
				it := l.accept(push, time.Hour)
				start.mustOffer(l.replace(it, bytes.Replace(it.Content, []byte(`"fcm"`), []byte(`"`+platform+`"`), 1)))
			}
		}
		idle(time.Second)
		for name, want := range count {
			if got := providers[name].sent.Load(); got != want {
				t.Errorf("%s got %d messages, want %d", name, got, want)
			}
		}
		for _, h := range start.Providers() {
			if h.Taken != count[h.Name] {
				t.Errorf("%s has taken %d by its health, want %d", h.Name, h.Taken, count[h.Name])
			}
		}
	})
}

func TestNewGates(t *testing.T) {
	route := func(name string, platforms ...string) Route {
		return Route{Provider: named{&fakeProvider{channel: message.ChannelPush}, name}, Platforms: platforms}
	}
	for name, c := range map[string]struct {
		routes []Route
		want   map[string]string // platform to provider
	}{
		"none":             {nil, map[string]string{"fcm": "none", "apns": "none"}},
		"one for all":      {[]Route{route("hook")}, map[string]string{"fcm": "hook", "apns": "hook"}},
		"one and the rest": {[]Route{route("a", "apns"), route("hook")}, map[string]string{"fcm": "hook", "apns": "a"}},
		"the first":        {[]Route{route("a", "apns"), route("b", "apns", "fcm")}, map[string]string{"fcm": "b", "apns": "a", "webpush": "none"}},
		"all before it":    {[]Route{route("hook"), route("a", "apns")}, map[string]string{"fcm": "hook", "apns": "hook"}},
	} {
		g, err := newGates(message.ChannelPush, c.routes, nil, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		for platform, want := range c.want {
			got := g.of(&message.Content{Push: &message.Push{Platform: platform}}).provider.Name()
			if got != want || !slices.Contains(g.names(), want) {
				t.Errorf("%s: %s goes to %s, want %s", name, platform, got, want)
			}
		}
	}
	if _, err := newGates(message.ChannelEmail, []Route{route("a")}, nil, nil); err == nil {
		t.Error("a push provider for email")
	}
}
