package postmark

import (
	"context"
	"testing"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/delivery/providertest"
	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/overhttp"
	"github.com/stormpost/stormpost/internal/sim"
)

func TestSim(t *testing.T) {
	providertest.RunMailSim(t, providertest.MailSim{
		Key: key,
		Start: func(ctx context.Context, o sim.MailOptions) (providertest.MailService, error) {
			return sim.StartPostmark(ctx, o)
		},
		New: func(k *credential.Credential, o overhttp.Options) (delivery.Provider, error) {
			return New(Config{Key: k, Options: o})
		},
	})
}
