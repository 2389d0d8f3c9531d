package cli

import (
	"fmt"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/internal/app"
	"github.com/stormpost/stormpost/internal/config"
	"github.com/stormpost/stormpost/internal/overhttp"
)

func (c *command) dev() *cobra.Command {
	opt := app.DevOptions{Version: Version, Output: c.Err}
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run everything on this machine, with simulated providers and an inbox",
		Long: `Run everything on this machine: PostgreSQL as a child process, a Kafka-protocol
broker, the API, a worker, and simulators of an SMTP server, Amazon SES, Resend,
Postmark, SendGrid, FCM, APNs and Web Push, whose inbox is a page. All state is in
one folder; stop it, or kill -9 it, and start it again: nothing is lost, nothing is
sent twice. What was being handed over when it was killed is "sending" for some ten
minutes more, and then in doubt.

Once all is ready it writes dev.json into the folder: api, api_key,
operator_key, inbox, subscription (a simulated browser's, to send a Web Push to),
metrics, dsn, brokers, pid. The inbox answers GET /messages with a JSON list.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for flag, addr := range map[string]string{"--listen": opt.Listen, "--inbox": opt.Inbox, "--smtp": opt.SMTP} {
				if addr != "" && !config.IsAddress(addr, 0) {
					return usage("%s: want HOST:PORT, not %q", flag, addr)
				}
			}
			for _, b := range opt.Brokers {
				if !config.IsAddress(b, 0) {
					return usage("--brokers: want HOST:PORT, not %q", b)
				}
			}
			if !slices.Contains([]string{"smtp", "ses", "resend", "postmark", "sendgrid"}, opt.Email) {
				return usage("--email: want smtp, ses, resend, postmark or sendgrid, not %q", opt.Email)
			}
			if opt.FCM != "" {
				if _, problem := overhttp.CheckURL(opt.FCM); problem != "" {
					return usage("--fcm: %s", problem)
				}
			}
			if opt.DSN != "" {
				if err := dedupe.CheckDSN(opt.DSN); err != nil {
					return usage("--%w", err)
				}
			}
			fmt.Fprintln(c.Err, "Starting; the first time takes some seconds …")
			opt.Ready = func(a app.DevAddresses) { c.printDev(opt.Data, a) }
			return app.Dev(cmd.Context(), opt)
		},
	}
	f := cmd.Flags()
	f.StringVar(&opt.Data, "data", "stormpost-data", "the folder that keeps everything")
	f.StringVar(&opt.Listen, "listen", "127.0.0.1:8080", "the API's host:port")
	f.StringVar(&opt.Inbox, "inbox", "", "the inbox's host:port (default a free port)")
	f.StringVar(&opt.Email, "email", "smtp", "which simulator takes email: smtp, ses, resend, postmark or sendgrid")
	f.StringVar(&opt.SMTP, "smtp", "", "host:port of an SMTP server to send to instead of the simulator: no AUTH, STARTTLS if offered")
	f.StringVar(&opt.FCM, "fcm", "", "base URL to send pushes to instead of the FCM simulator")
	f.StringVar(&opt.DSN, "dsn", "", "another PostgreSQL than its own")
	f.StringSliceVar(&opt.Brokers, "brokers", nil, "another Kafka than its own, host:port,…")
	return cmd
}

func (c *command) printDev(data string, a app.DevAddresses) {
	fmt.Fprintf(c.Out, `
Stormpost is ready.

  API        %s        (%s/openapi.json)
  inbox      %s
  metrics    %s/metrics
  API key    %s
  operator   %s
  state      %s

Send an email and a push, and see both in the inbox:

  curl -sS %s/v1/emails -H 'Authorization: Bearer %s' -H 'Content-Type: application/json' \
    -d '{"from":"app@example.com","to":["you@example.com"],"subject":"Hello","text":"It works."}'

  curl -sS %s/v1/pushes -H 'Authorization: Bearer %s' -H 'Content-Type: application/json' \
    -d '{"platform":"fcm","to":"device-token","notification":{"title":"Hello","body":"It works."}}'

Stop with ^C; start again and everything is still there.
`, a.API, a.API, a.Inbox, a.Metrics, a.APIKey, a.OperatorKey, filepath.Clean(data), a.API, a.APIKey, a.API, a.APIKey)
}
