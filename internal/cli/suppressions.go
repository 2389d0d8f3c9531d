package cli

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// suppressionAnswer is what the commands show of a suppression.
type suppressionAnswer struct {
	ID       int64     `json:"id"`
	Tenant   int32     `json:"tenant"`
	Channel  string    `json:"channel"`
	To       string    `json:"to"`
	Reason   string    `json:"reason"`
	Provider string    `json:"provider"`
	At       time.Time `json:"at"`
}

func (c *command) suppressions() *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{
		Use:   "suppressions",
		Short: "See which recipients are refused, and take them off the list",
		Long: `A recipient goes on its tenant's list when a provider says that it is gone: a push
token that isn't registered any more, an address that bounced for good. A
complaint puts an address there, too. Messages to it are refused with 422, from
some seconds later on, unless they set bypass_suppression.

The key sees its own tenant's; one with the scope operator sees all.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usage("want list or clear: see %s --help", cmd.CommandPath())
		},
	}
	f.add(cmd)
	cmd.AddCommand(c.listSuppressions(&f), c.clearSuppressions(&f))
	return cmd
}

func (c *command) listSuppressions(f *clientFlags) *cobra.Command {
	var channel, to string
	var tenant int32
	var pages paging
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List who is suppressed, newest first, and why",
		Long: `List who is suppressed, newest first: the number that clear wants, since when, by
which provider's word, and why: recipient_gone or complained.

With --json it prints {"items": [...], "next": ...} as GET /v1/suppressions
answers.`,
		Example: `  stormpost suppressions list
  stormpost suppressions list --to ann@reader.example --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if channel != "" && channel != "email" && channel != "push" {
				return usage("--channel: want email or push, not %q", channel)
			}
			q, err := pages.query()
			if err != nil {
				return err
			}
			for name, value := range map[string]string{"channel": channel, "to": to} {
				if value != "" {
					q.Set(name, value)
				}
			}
			if tenant != 0 {
				q.Set("tenant", strconv.Itoa(int(tenant)))
			}
			cl, err := c.client(*f)
			if err != nil {
				return err
			}
			return list(cmd.Context(), c, cl, "/v1/suppressions", q, c.showSuppressions)
		},
	}
	p := cmd.Flags()
	p.StringVar(&channel, "channel", "", "email or push; default both")
	p.StringVar(&to, "to", "", "that of this address, token or endpoint")
	p.Int32Var(&tenant, "tenant", 0, "for operators: those of this tenant")
	pages.add(cmd)
	return cmd
}

func (c *command) showSuppressions(all []suppressionAnswer) error {
	if len(all) == 0 {
		fmt.Fprintln(c.Out, "nobody is suppressed")
		return nil
	}
	w := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NUMBER\tCHANNEL\tRECIPIENT\tREASON\tPROVIDER\tSINCE")
	for _, s := range all {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\n", s.ID, s.Channel, s.To, s.Reason, s.Provider, s.At.Local().Format(time.DateTime))
	}
	return w.Flush()
}

func (c *command) clearSuppressions(f *clientFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "clear NUMBER...",
		Short: "Take recipients off the list, by their numbers",
		Long: `Take recipients off the list. Messages to them are accepted again within seconds;
who is gone all the same comes back with the next message to it. What was refused
meanwhile is not sent. Clearing stops at the first number that isn't on the list.

With --json it prints {"items": [...]}: what was cleared.`,
		Example: `  stormpost suppressions clear 7`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, arg := range args {
				if n, err := strconv.ParseInt(arg, 10, 64); err != nil || n < 1 {
					return usage("want the numbers that suppressions list shows, not %q", arg)
				}
			}
			cl, err := c.client(*f)
			if err != nil {
				return err
			}
			cleared := []json.RawMessage{}
			for _, arg := range args {
				var raw json.RawMessage
				if err = cl.call(cmd.Context(), http.MethodDelete, "/v1/suppressions/"+arg, nil, nil, &raw); err != nil {
					err = fmt.Errorf("suppression %s: %w", arg, err)
					break
				}
				cleared = append(cleared, raw)
				var s suppressionAnswer
				if json.Unmarshal(raw, &s) == nil && !c.json {
					fmt.Fprintf(c.Out, "suppression %d: %s is off the list\n", s.ID, s.To)
				}
			}
			if c.json {
				if perr := c.printJSON(map[string]any{"items": cleared}); err == nil {
					err = perr
				}
			}
			return err
		},
	}
}
