package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/stormpost/stormpost/dedupe"
)

func (c *command) migrate() *cobra.Command {
	var check bool
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Bring the ledger's schema up to date",
		Long: `Bring the ledger's schema up to date. One process at a time does it, each step
in a transaction of its own; running it again changes nothing.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dsn, err := c.dsn()
			if err != nil {
				return err
			}
			run := dedupe.Migrate
			if check {
				run = dedupe.Migrations
			}
			steps, err := run(cmd.Context(), dsn)
			if err != nil {
				return err
			}
			return c.printMigrations(steps, check)
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "only show which steps are applied")
	return cmd
}

func (c *command) printMigrations(steps []dedupe.Migration, check bool) error {
	if c.json {
		type step struct {
			Version int64  `json:"version"`
			Name    string `json:"name"`
			Applied bool   `json:"applied"`
		}
		out := make([]step, len(steps))
		for i, s := range steps {
			out[i] = step(s)
		}
		return c.printJSON(out)
	}
	if len(steps) == 0 {
		_, err := fmt.Fprintln(c.Out, "The schema is up to date.")
		return err
	}
	for _, s := range steps {
		state := "applied"
		if !s.Applied {
			state = "pending"
		}
		if !check {
			state = "done"
		}
		if _, err := fmt.Fprintf(c.Out, "%-8s %s\n", state, s.Name); err != nil {
			return err
		}
	}
	return nil
}
