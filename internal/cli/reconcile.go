package cli

import (
	"errors"
	"fmt"
	"os/user"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/internal/app"
)

func (c *command) reconcile() *cobra.Command {
	var opt app.ReconcileOptions
	var since string
	cmd := &cobra.Command{
		Use:   "reconcile",
		Short: "Tell a ledger that was rolled back what Kafka knows, and start it again",
		Long: `Tell a ledger that was rolled back what Kafka knows, and start it again.

PostgreSQL that was restored from a backup, or a standby that lagged and was
promoted, has forgotten messages and what became of them. When that is noticed,
nothing is claimed and accepting goes to Kafka's journal, until this command:

  - What Kafka's lanes and journals hold and the ledger lost is entered again:
    the same id, key and numbers.
  - What the trail of attempts (topic PREFIX.events) says was sent, is sent. What
    was claimed, and nobody knows more, is in doubt: a person decides it.
  - Everything else is sent. Positions and streams go on beyond all that was given
    out.

It works on PostgreSQL and Kafka themselves, with the settings of serve; running
processes may go on running. It shows what it does on standard error. If it breaks
off, run it again. What is in neither store can't be entered: its numbers are
missing in stormpost audit.

Exit codes: 0 reconciled, or nothing to do; 1 it failed; 2 the command line is
wrong; records that could not be entered are parked and counted.`,
		Example: `  stormpost reconcile --dry-run
  stormpost reconcile --json
  stormpost reconcile --since 2026-11-24T09:00:00Z`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			at, err := timeFlag("since", since)
			if err != nil {
				return err
			}
			if at != nil {
				opt.Since = *at
			}
			cfg, err := c.settings()
			if err != nil {
				return err
			}
			if cfg.DSN == "" {
				return usage("dsn is not set: give it in the settings file, or as STORMPOST_DSN")
			}
			if u, err := user.Current(); err == nil && opt.By == "" {
				opt.By = u.Username
			}
			last, step := time.Now(), ""
			opt.Progress = func(what string, done int64) {
				if now := time.Now(); what != step || now.Sub(last) >= time.Second {
					last, step = now, what
					fmt.Fprintf(c.Err, "%s: %d\n", what, done)
				}
			}
			r, err := app.Reconcile(cmd.Context(), cfg, opt)
			switch {
			case errors.Is(err, dedupe.ErrStands):
				if c.json {
					return c.printJSON(map[string]any{"rolled_back": false})
				}
				_, err := fmt.Fprintln(c.Out, "The ledger stands: no rollback was noticed, or it is reconciled.")
				return err
			case err != nil:
				return err
			}
			return c.showReconciled(r)
		},
	}
	p := cmd.Flags()
	p.BoolVar(&opt.DryRun, "dry-run", false, "only say what would be done")
	p.StringVar(&since, "since", "", "read Kafka from this time on, RFC 3339; by default from 10 min before the ledger was rolled back to")
	p.StringVar(&opt.By, "by", "", "who does it, kept with the rollback; by default you")
	return cmd
}

func (c *command) showReconciled(r *app.ReconcileReport) error {
	if c.json {
		return c.printJSON(r)
	}
	w := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
	d := r.Done
	fmt.Fprintf(w, "cause\t%s\nnoticed\t%s\nread since\t%s\n", r.Cause, r.Noticed.Format(time.RFC3339), r.Since.Format(time.RFC3339))
	fmt.Fprintf(w, "records read\t%d\nattempts told of\t%d\nlost messages\t%d\n", d.Records, d.Told, d.Lost)
	fmt.Fprintf(w, "  sent before\t%d\n  ended otherwise\t%d\n  in doubt\t%d\n  to be sent\t%d\n", d.Sent, d.Ended, d.InDoubt, d.ToSend)
	fmt.Fprintf(w, "lost attempts\t%d\nfrom journals\t%d\nparked\t%d\n", d.Retraced, d.Journaled, d.Parked)
	if r.DryRun {
		fmt.Fprintln(w, "nothing was changed")
	} else {
		fmt.Fprintf(w, "took\t%.1f s\n", r.Took)
	}
	return w.Flush()
}
