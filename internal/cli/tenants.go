package cli

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/stormpost/stormpost/dedupe"
)

func (c *command) tenants() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tenants",
		Short: "List tenants, and set what becomes of their repeats in an incident",
		Long: `List tenants, and set what becomes of their repeats in an incident, in the
ledger that dsn names.

While an incident is open that holds messages up, and for accept.shield after it,
a request without an idempotency key that has the whole content and the
recipients of an earlier one without a key is taken for its repeat: people submit
again what seems lost. With keys nobody needs this.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.tenantsList(), c.tenantsRepeats())
	return cmd
}

func (c *command) tenantsList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List tenants with their sender domains and what becomes of their repeats",
		Example: `  stormpost tenants list --json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withLedger(func(l *dedupe.Ledger) error {
				all, err := l.Tenants(cmd.Context())
				if err != nil {
					return err
				}
				if c.json {
					out := make([]map[string]any, 0, len(all))
					for _, t := range all {
						out = append(out, map[string]any{"id": t.ID, "name": t.Name, "domains": t.Domains, "repeats": t.Repeats, "created_at": t.CreatedAt})
					}
					return c.printJSON(out)
				}
				w := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "ID\tNAME\tREPEATS\tDOMAINS")
				for _, t := range all {
					fmt.Fprintf(w, "%d\t%s\t%s\t%s\n", t.ID, t.Name, t.Repeats, strings.Join(t.Domains, ","))
				}
				return w.Flush()
			})
		},
	}
}

func (c *command) tenantsRepeats() *cobra.Command {
	return &cobra.Command{
		Use:   "repeats TENANT (off | flag | suppress)",
		Short: "Set what becomes of a tenant's repeats in an incident",
		Long: `Set what becomes of a tenant's repeats in an incident:

  off       nothing is looked for
  flag      a repeat is accepted and sent as any other, and shows repeat_of
  suppress  a repeat is answered with the first one's ids and not sent, unless the
            first one failed, expired, was canceled or superseded. A repeat that
            the journal took has ids of its own and ends as canceled`,
		Example: `  stormpost tenants repeats acme suppress`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withLedger(func(l *dedupe.Ledger) error {
				if err := l.SetRepeats(cmd.Context(), args[0], args[1]); err != nil {
					return err
				}
				if c.json {
					return c.printJSON(map[string]any{"name": args[0], "repeats": args[1]})
				}
				_, err := fmt.Fprintf(c.Out, "repeats of %s: %s\n", args[0], args[1])
				return err
			})
		},
	}
}
