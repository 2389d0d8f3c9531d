package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/stormpost/stormpost/internal/app"
	"github.com/stormpost/stormpost/internal/config"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/recovery"
)

func (c *command) evacuate() *cobra.Command {
	var plan recovery.EvacuatePlan
	var lanes []string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "evacuate --to CLUSTER",
		Short: "Move lanes to another Kafka cluster",
		Long: `Move lanes to another Kafka cluster, most urgent first: one of the setting
clusters, or main, which is the cluster of brokers. Topics are made there, and
within some seconds every process publishes to it and reads from it. The backlog
comes from the ledger, so nothing is copied and the old cluster need not answer.
What it still holds is harmless; its journals are read whenever it can be reached.

Then it shows how the backlogs of the lanes go down, until they are gone. Ended
before that, it has moved the lanes all the same; the same command follows it on.
Moving back is the same command, --to the cluster that they came from. After a move
to the standby that was made automatically, --to it confirms that.

It refuses a cluster that every lane asked for uses already, one that isn't
configured, one that holds topics or messages that aren't ours under the prefix of
our topics, and to run beside another evacuation. It needs the ledger, so it reads the
settings of serve: dsn, brokers, clusters, kafka.*.

With --json standard output is one object {to, dry_run, resumed, lanes[{lane, from,
backlog, moved}], took_s}.`,
		Example: `  stormpost evacuate --to b --dry-run
  stormpost evacuate --to b
  stormpost evacuate --to b --lanes campaign.email,campaign.push --rate 500
  stormpost evacuate --to main`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := c.settings()
			if err == nil {
				err = errors.Join(cfg.Validate(), planLanes(cfg, &plan, lanes))
			}
			if err != nil {
				return &exitError{exitUsage, err}
			}
			plan.By = whoami()
			return c.runEvacuate(cmd.Context(), cfg, plan, dryRun)
		},
	}
	p := cmd.Flags()
	p.StringVar(&plan.To, "to", "", "the cluster's name")
	p.StringSliceVar(&lanes, "lanes", nil, "these lanes, as transactional.email,… (default: all)")
	p.IntVar(&plan.Rate, "rate", 0, "of each lane's backlog, messages a second that workers take from the ledger at most, until it is gone; 0: no bound")
	_ = p.SetAnnotation("rate", zeroIsFine, nil) // it is there
	p.BoolVar(&dryRun, "dry-run", false, "say what would be moved, or why it may not be, and change nothing")
	_ = cmd.MarkFlagRequired("to") // it is there
	return cmd
}

// planLanes checks what the command line asks for.
func planLanes(cfg config.Config, plan *recovery.EvacuatePlan, lanes []string) error {
	if names := app.Clusters(cfg); !slices.Contains(names, plan.To) {
		return fmt.Errorf("--to: there is no cluster %q: want one of %s, as the settings brokers and clusters have them", plan.To, strings.Join(names, ", "))
	}
	if plan.Rate > 1_000_000 {
		return fmt.Errorf("--rate: want 1 to 1000000, or 0 for no bound, not %d", plan.Rate)
	}
	for _, name := range lanes {
		l, err := message.ParseLane(name)
		if err != nil {
			return fmt.Errorf("--lanes: %w", err)
		}
		plan.Lanes = append(plan.Lanes, l)
	}
	return nil
}

// whoami is who runs the command, for the record.
func whoami() string {
	name := "operator"
	if u, err := user.Current(); err == nil && u.Username != "" {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}

func (c *command) runEvacuate(ctx context.Context, cfg config.Config, plan recovery.EvacuatePlan, dryRun bool) error {
	began := time.Now()
	bar := &evacuateBar{command: c}
	moves, resumed, err := app.Evacuate(ctx, cfg, plan, dryRun, bar.show)
	bar.end()
	if err != nil {
		return fmt.Errorf("evacuate: %w", err)
	}
	if c.json {
		type lane struct {
			Lane    string `json:"lane"`
			From    string `json:"from"`
			Backlog int64  `json:"backlog"`
			Moved   bool   `json:"moved"`
		}
		out := make([]lane, len(moves))
		for i, m := range moves {
			out[i] = lane{m.Lane.String(), m.From, m.Backlog, m.Moved}
		}
		return c.printJSON(map[string]any{"to": plan.To, "dry_run": dryRun, "resumed": resumed, "lanes": out, "took_s": time.Since(began).Seconds()})
	}
	w := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "LANE\tFROM\tTO\tBACKLOG\t")
	for _, m := range moves {
		note := ""
		switch {
		case dryRun && m.From != plan.To:
			note = "would be moved"
		case m.Moved:
			note = "moved"
		case m.From == plan.To:
			note = "was there"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", m.Lane, m.From, plan.To, m.Backlog, note)
	}
	return w.Flush()
}

// evacuateBar shows progress on one line of a terminal, else a line every 10 s.
type evacuateBar struct {
	*command
	last  time.Time
	shown bool
}

func (b *evacuateBar) show(p recovery.EvacuateProgress) {
	const width = 30
	done := 1.0
	if p.Of > 0 {
		done = float64(p.Of-p.Left) / float64(p.Of)
	}
	done = max(0, min(1, done))
	filled := int(done * width)
	eta := "ETA not known yet"
	switch {
	case p.Left == 0:
		eta = "done"
	case p.ETA > 0:
		eta = "ETA " + p.ETA.Round(time.Second).String()
	}
	line := fmt.Sprintf("[%s%s] %3.0f%%  lanes moved %d of %d  backlog %d of %d left  %s",
		strings.Repeat("#", filled), strings.Repeat(".", width-filled), 100*done, p.Moved, p.Lanes, p.Left, p.Of, eta)
	if f, ok := b.Err.(*os.File); ok {
		if st, err := f.Stat(); err == nil && st.Mode()&os.ModeCharDevice != 0 {
			fmt.Fprintf(b.Err, "\r%-110s", line)
			b.shown = true
			return
		}
	}
	if p.Left == 0 || time.Since(b.last) >= 10*time.Second {
		fmt.Fprintln(b.Err, line)
		b.last = time.Now()
	}
}

func (b *evacuateBar) end() {
	if b.shown {
		fmt.Fprintln(b.Err)
	}
}
