package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/stormpost/stormpost/internal/app"
)

func (c *command) preflight() *cobra.Command {
	return &cobra.Command{
		Use:   "preflight",
		Short: "Look whether the stores and credentials are fit for what Stormpost promises",
		Long: `Look whether the stores and credentials are fit for what Stormpost promises, and
change nothing:

  ledger      PostgreSQL answers and can be written to
  schema      every migration is applied
  durability  fsync, full_page_writes and synchronous_commit are not off
  numbering   what messages are numbered by is whole, of every stream
  kafka       the lanes' topics exist and have leaders; each cluster of the setting
              clusters is a check of its own
  credential  each provider lets us in with what it is configured with; nothing is
              sent. A webhook and a browser's push service have nobody to sign in to

It exits 1 if anything is wrong, and names each finding. Without the ledger the
checks that need it are left out.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := c.settings()
			if err != nil {
				return err
			}
			if err := cfg.Validate(); err != nil {
				return err
			}
			checks, err := app.Preflight(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			return c.printChecks(checks)
		},
	}
}

func (c *command) printChecks(checks []app.PreflightCheck) error {
	wrong := 0
	for _, check := range checks {
		wrong += len(check.Findings)
	}
	if c.json {
		if err := c.printJSON(map[string]any{"ok": wrong == 0, "checks": checks}); err != nil {
			return err
		}
	} else {
		for _, check := range checks {
			if len(check.Findings) == 0 {
				fmt.Fprintf(c.Out, "ok     %s\n", check.Name)
			}
			for _, f := range check.Findings {
				fmt.Fprintf(c.Out, "WRONG  %s: %s\n", check.Name, f)
			}
		}
	}
	if wrong > 0 {
		return fmt.Errorf("preflight: %d findings", wrong)
	}
	return nil
}
