package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/stormpost/stormpost/dedupe"
)

func (c *command) migrate() *cobra.Command {
	var check bool
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Bring the ledger's schema up to date",
		Long: `Bring the ledger's schema up to date. One process at a time does it, in one
transaction; running it again changes nothing. Before and after the steps it
looks at what messages are numbered by: keys, indexes, sequences, and every
stream's counter against its messages. If the steps would break any of it, none
is taken. A lock that can't be had within 5 s ends it: try again.

--check takes the same steps and rolls them back, so it shows what would happen;
for as long as it runs it holds the same locks. It exits 1 if numbering is or
would be broken, and names each fault.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dsn, err := c.dsn()
			if err != nil {
				return err
			}
			run := dedupe.Migrate
			if check {
				run = dedupe.CheckMigrate
			}
			steps, err := run(cmd.Context(), dsn)
			if err != nil {
				var lost *dedupe.NumberingLost
				if check && errors.As(err, &lost) { // which steps, all the same
					return errors.Join(c.printMigrations(steps, check), err)
				}
				return err
			}
			return c.printMigrations(steps, check)
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "take the pending steps, look at the numbering, and roll all back")
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
