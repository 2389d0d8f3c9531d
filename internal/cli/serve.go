package cli

import (
	"github.com/spf13/cobra"

	"github.com/stormpost/stormpost/internal/app"
)

func (c *command) serve() *cobra.Command {
	var roles []string
	var listen string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the API, a worker, recovery and the watch on your PostgreSQL and Kafka",
		Long: `Run the API, a worker, recovery and the watch, or some of them, on your
PostgreSQL and Kafka, until SIGTERM. Start as many as you like: none has to be
alone. Recovery enters into the ledger what the API accepted into Kafka's journal
while PostgreSQL was away, and repairs the numbering when the ledger loses it: some
process must have that role. The watch opens incidents and tells the log, a webhook
and Alertmanager of them, as incidents.* say; provider trouble is seen by the watch
of a process that is a worker, too. On SIGTERM it takes no more requests and makes
no more claims, finishes open replies within delivery.shutdown_grace, and gives
back what it has not handed over.

Settings come from the file of --config, and over it from STORMPOST_*: the key
smtp.addr is STORMPOST_SMTP_ADDR. The ones to begin with:

  STORMPOST_DSN             postgres://user:password@host/database, the writer
  STORMPOST_BROKERS         Kafka, host:port,host:port
  STORMPOST_LISTEN          the API, 127.0.0.1:8080
  STORMPOST_METRICS_LISTEN  /metrics, 127.0.0.1:9464
  STORMPOST_DATA_DIR        a folder of its own: the keys' snapshot, the last incidents
  STORMPOST_SMTP_ADDR       the SMTP relay, with _USERNAME, _PASSWORD, _TLS
  STORMPOST_FCM_SERVICE_ACCOUNT   file:/path/of/service-account.json

Traces and metrics are exported as OTEL_EXPORTER_OTLP_* say, over http/protobuf
only.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := c.settings()
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("roles") {
				cfg.Roles = roles
			}
			if cmd.Flags().Changed("listen") {
				cfg.Listen = listen
			}
			return app.Serve(cmd.Context(), cfg, app.Options{Version: Version, Output: c.Out})
		},
	}
	cmd.Flags().StringSliceVar(&roles, "roles", []string{"api", "worker", "recovery", "watch"}, "of api, worker, recovery and watch")
	cmd.Flags().StringVar(&listen, "listen", "", "host:port of the API")
	return cmd
}
