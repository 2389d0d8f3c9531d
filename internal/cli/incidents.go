package cli

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// incidentAnswer is what the command shows of an incident.
type incidentAnswer struct {
	State      string     `json:"state"`
	Cause      string     `json:"cause"`
	Severity   string     `json:"severity"`
	Summary    string     `json:"summary"`
	Runbook    string     `json:"runbook"`
	Command    string     `json:"command"`
	OpenedAt   time.Time  `json:"opened_at"`
	ResolvedAt *time.Time `json:"resolved_at"`
}

func (c *command) incidents() *cobra.Command {
	f := clientFlags{operator: true}
	var state string
	var pages paging
	var watch bool
	cmd := &cobra.Command{
		Use:   "incidents",
		Short: "See what is wrong, since when, and what to do",
		Long: `See what is wrong, since when, and what to do: each incident with its runbook
section and a command that helps. They open and resolve by themselves. The API
answers from its memory, also while PostgreSQL and Kafka are away. The key needs
the scope operator.

With --json it prints {"items": [...], "next": ...} as GET /v1/incidents answers;
with --watch, one such object every two seconds.`,
		Example: `  stormpost incidents
  stormpost incidents --watch
  stormpost incidents --state resolved --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q, err := pages.query()
			if err != nil {
				return err
			}
			switch state {
			case "open", "resolved":
				q.Set("state", state)
			case "all":
			default:
				return usage("--state: want open, resolved or all, not %q", state)
			}
			cl, err := c.client(f)
			if err != nil {
				return err
			}
			if !watch {
				return c.listIncidents(cmd, cl, q, state)
			}
			return c.watchIncidents(cmd, cl, q, state)
		},
	}
	f.add(cmd)
	p := cmd.Flags()
	p.StringVar(&state, "state", "open", "open, resolved or all")
	pages.add(cmd)
	p.BoolVar(&watch, "watch", false, "ask again every two seconds, until ^C")
	return cmd
}

// watchIncidents asks until it is interrupted. An API that is away comes back.
func (c *command) watchIncidents(cmd *cobra.Command, cl *client, q url.Values, state string) error {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		if !c.json {
			fmt.Fprintf(c.Out, "\n%s\n", time.Now().Format(time.TimeOnly))
		}
		err := c.listIncidents(cmd, cl, q, state)
		var e *exitError
		switch {
		case cmd.Context().Err() != nil:
			return nil
		case err == nil:
		case errors.As(err, &e) && e.code == exitUnavailable:
			fmt.Fprintln(c.Err, "stormpost:", err)
		default:
			return err
		}
		select {
		case <-tick.C:
		case <-cmd.Context().Done():
			return nil
		}
	}
}

func (c *command) listIncidents(cmd *cobra.Command, cl *client, q url.Values, state string) error {
	return list(cmd.Context(), c, cl, "/v1/incidents", q, func(all []incidentAnswer) error { return c.showIncidents(all, state) })
}

func (c *command) showIncidents(all []incidentAnswer, state string) error {
	if len(all) == 0 {
		fmt.Fprintf(c.Out, "no %s\n", map[string]string{"open": "open incidents", "resolved": "resolved incidents", "all": "incidents"}[state])
		return nil
	}
	var out bytes.Buffer
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	for n, i := range all {
		if n > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "%s\t%s, %s\n", i.Cause, i.Severity, i.State)
		fmt.Fprintf(w, "  what\t%s\n", i.Summary)
		fmt.Fprintf(w, "  since\t%s\n", i.OpenedAt.Local().Format(time.Stamp))
		if i.ResolvedAt != nil {
			fmt.Fprintf(w, "  until\t%s\n", i.ResolvedAt.Local().Format(time.Stamp))
		}
		fmt.Fprintf(w, "  try\t%s\n  see\t%s\n", i.Command, i.Runbook)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := out.WriteTo(c.Out)
	return err
}
