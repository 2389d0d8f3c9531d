package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/stormpost/stormpost/internal/app"
	"github.com/stormpost/stormpost/internal/bench"
	"github.com/stormpost/stormpost/internal/config"
)

func (c *command) bench() *cobra.Command {
	var opt app.BenchOptions
	var dsn string
	var brokers []string
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure accept → Kafka → claim → loopback provider → record on given stores",
		Long: `Measure the whole pipe on the PostgreSQL and Kafka that the settings, or --dsn
and --brokers, name: accept, publish, consume, claim, hand over to a loopback
provider, record, with the code of serve and all safety on, in one process.

It makes topics of its own and removes them; its messages stay in the ledger,
so give it a database of its own. It fails if a message is delivered twice, or not.`,
		Example: `  stormpost bench --dsn postgres://…/bench --brokers 127.0.0.1:9092 --count 200000
  stormpost bench --count 5000 --rate 500
  stormpost bench --http`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := c.settings()
			if err != nil {
				return err
			}
			if dsn != "" {
				cfg.DSN = config.Secret(dsn)
			}
			if len(brokers) > 0 {
				cfg.Brokers = brokers
			}
			if opt.Timeout == 0 {
				return usage("--timeout: want more than 0")
			}
			cfg.SMTP, cfg.FCM = config.Default().SMTP, config.Default().FCM
			opt.Output, opt.Progress = c.Err, c.Err
			res, err := app.Bench(cmd.Context(), cfg, opt)
			if err != nil {
				return err
			}
			return c.printBench(res)
		},
	}
	f := cmd.Flags()
	f.StringVar(&dsn, "dsn", "", "PostgreSQL (default: the setting dsn)")
	f.StringSliceVar(&brokers, "brokers", nil, "Kafka (default: the setting brokers)")
	f.IntVar(&opt.Count, "count", 200_000, "messages")
	f.IntVar(&opt.Rate, "rate", 0, "messages a second; 0: as fast as it goes")
	_ = f.SetAnnotation("rate", zeroIsFine, nil) // it is there
	f.IntVar(&opt.Payload, "payload", 1024, "bytes of each message's text")
	f.IntVar(&opt.Streams, "streams", 8, "streams to number them in")
	f.IntVar(&opt.Submitters, "submitters", 1000, "submitting at a time")
	f.IntVar(&opt.Senders, "senders", 1000, "attempts under way at a time")
	f.DurationVar(&opt.Timeout, "timeout", 10*time.Minute, "for all of it")
	f.BoolVar(&opt.HTTP, "http", false, "submit through the API")
	return cmd
}

func (c *command) printBench(r *bench.Result) error {
	if c.json {
		return c.printJSON(r)
	}
	fmt.Fprintf(c.Out, "%d messages: accepted %.0f/s, end to end %.0f/s\n", r.Messages, r.AcceptPerSec, r.EndPerSec)
	for name, l := range map[string]bench.Latency{"accept": r.Accept, "end to end": r.EndToEnd} {
		fmt.Fprintf(c.Out, "%-11s p50 %.1f ms  p95 %.1f ms  p99 %.1f ms  max %.1f ms\n", name, l.P50, l.P95, l.P99, l.Max)
	}
	for _, p := range r.CPU {
		fmt.Fprintf(c.Out, "cpu %-28s %7.2f s  %6.1f µs a message\n", p.Part, p.Seconds, p.PerMicros)
	}
	return nil
}
