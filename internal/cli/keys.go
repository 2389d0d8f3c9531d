package cli

import (
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/internal/app"
	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/message"
)

func (c *command) keys() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Make, list and revoke API keys",
		Long: `Make, list and revoke API keys, in the ledger that dsn names. Running API
processes see a change within about a second.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.keysCreate(), c.keysList(), c.keysRevoke())
	return cmd
}

// withLedger runs fn on the configured ledger.
func (c *command) withLedger(fn func(*dedupe.Ledger) error) error {
	dsn, err := c.dsn()
	if err != nil {
		return err
	}
	l, err := dedupe.Open(dedupe.Config{DSN: dsn})
	if err != nil {
		return err
	}
	defer l.Close()
	err = fn(l)
	var wrong message.FieldErrors
	switch {
	case errors.As(err, &wrong):
		return &exitError{exitUsage, err}
	case errors.Is(err, message.ErrUnavailable):
		return &exitError{exitUnavailable, err}
	}
	return err
}

func (c *command) keysCreate() *cobra.Command {
	var tenant string
	var scopes, domains []string
	var test bool
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a key, and its tenant if that is new; the key is shown once",
		Example: `  stormpost keys create --tenant acme --domain acme.com --scope send,read
  stormpost keys create --tenant ops --scope operator`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var parsed []keyring.Scope
			for _, s := range scopes {
				scope, err := keyring.ParseScope(s)
				if err != nil {
					return usage("--scope: %v", err)
				}
				parsed = append(parsed, scope)
			}
			for _, d := range domains {
				if !ingest.IsSenderDomain(d) {
					return usage(`--domain: no sender is of %q: want example.com, .example.com for all below it, or "*" for any`, d)
				}
			}
			return c.withLedger(func(l *dedupe.Ledger) error {
				text, rec, err := app.CreateKey(cmd.Context(), l, tenant, domains, parsed, test)
				if err != nil {
					return err
				}
				if c.json {
					return c.printJSON(map[string]any{"key": text, "prefix": rec.Prefix, "tenant": tenant, "scopes": scopes, "test": test})
				}
				_, err = fmt.Fprintln(c.Out, text)
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&tenant, "tenant", "", "whose key it is")
	f.StringSliceVar(&domains, "domain", nil, `sender domains that the tenant may use, .example.com for all below it, "*" for any; replaces those that it has`)
	f.StringSliceVar(&scopes, "scope", []string{"send", "read"}, "what it may do: send, read, operator")
	f.BoolVar(&test, "test", false, "a test key: nothing that it submits reaches a provider")
	_ = cmd.MarkFlagRequired("tenant")
	return cmd
}

func (c *command) keysList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List keys by their public prefixes",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withLedger(func(l *dedupe.Ledger) error {
				records, err := l.Keys(cmd.Context())
				if err != nil {
					return err
				}
				if c.json {
					out := make([]map[string]any, 0, len(records))
					for _, r := range records {
						out = append(out, map[string]any{"prefix": r.Prefix, "tenant": r.TenantName, "scopes": r.Scopes, "test": r.Test, "revoked": r.Revoked})
					}
					return c.printJSON(out)
				}
				w := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "PREFIX\tTENANT\tSCOPES\tMODE\tSTATE")
				for _, r := range records {
					mode, state := "live", "active"
					if r.Test {
						mode = "test"
					}
					if r.Revoked {
						state = "revoked"
					}
					fmt.Fprintf(w, "%s\t%s\t%v\t%s\t%s\n", r.Prefix, r.TenantName, r.Scopes, mode, state)
				}
				return w.Flush()
			})
		},
	}
}

func (c *command) keysRevoke() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke PREFIX",
		Short: "Revoke a key for ever",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withLedger(func(l *dedupe.Ledger) error {
				err := l.RevokeKey(cmd.Context(), args[0])
				if errors.Is(err, message.ErrNotFound) {
					return usage("no key has the prefix %q", args[0])
				}
				return err
			})
		},
	}
}
