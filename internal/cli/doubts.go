package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// doubtAnswer is what the commands show of a doubt.
type doubtAnswer struct {
	ID       string        `json:"id"`
	Attempt  int           `json:"attempt"`
	Cause    string        `json:"cause"`
	Since    time.Time     `json:"since"`
	Provider string        `json:"provider"`
	Message  messageAnswer `json:"message"`
}

// doubtFilter is a request's filter; nil fields are left out.
type doubtFilter struct {
	Lane     string     `json:"lane,omitempty"`
	Provider string     `json:"provider,omitempty"`
	Tenant   int32      `json:"tenant,omitempty"`
	Since    *time.Time `json:"since,omitempty"`
	Until    *time.Time `json:"until,omitempty"`
}

type decisionsRequest struct {
	Filter   *doubtFilter `json:"filter,omitempty"`
	All      bool         `json:"all,omitempty"`
	Decision string       `json:"decision"`
	Reason   string       `json:"reason"`
	DryRun   bool         `json:"dry_run,omitempty"`

	attempt int // of a message that is named
}

type decisionsAnswer struct {
	DryRun   bool             `json:"dry_run"`
	Matched  int64            `json:"matched"`
	Lanes    map[string]int64 `json:"lanes"`
	Causes   map[string]int64 `json:"causes"`
	Sample   []doubtAnswer    `json:"sample"`
	Decided  int64            `json:"decided"`
	More     bool             `json:"more"`
	Decision string           `json:"decision"`
	Reason   string           `json:"reason"`
	By       string           `json:"by"`
}

func (c *command) doubts() *cobra.Command {
	f := clientFlags{operator: true}
	cmd := &cobra.Command{
		Use:   "doubts",
		Short: "See and decide doubts: messages of which nobody knows whether they were taken",
		Long: `A message is in doubt when its provider's answer was lost, or its worker is
gone. It is held until the worker's late answer comes, or until a person decides
it, once. Ask the provider first: resending what was taken sends it twice.`,
		Example: `  stormpost doubts
  stormpost doubts decide --provider smtp --decision resend --reason "the relay's log is empty" --dry-run`,
		Args: cobra.NoArgs,
	}
	f.add(cmd)
	listing := c.doubtsList(&f)
	cmd.RunE = listing.RunE
	cmd.AddCommand(listing, c.doubtsDecide(&f))
	return cmd
}

func (c *command) doubtsList(f *clientFlags) *cobra.Command {
	var pages paging
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List open doubts, oldest first",
		Example: `  stormpost doubts list --limit 200`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q, err := pages.query()
			if err != nil {
				return err
			}
			cl, err := c.client(*f)
			if err != nil {
				return err
			}
			return list(cmd.Context(), c, cl, "/v1/doubts", q, func(all []doubtAnswer) error { return showDoubts(c.Out, all) })
		},
	}
	pages.add(cmd)
	return cmd
}

func showDoubts(out io.Writer, all []doubtAnswer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SINCE\tID\tATTEMPT\tCAUSE\tPROVIDER\tNUMBER\tLANE\tTO")
	for _, d := range all {
		m := d.Message
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s/%s\t%s.%s\t%s\n", d.Since.Local().Format(time.Stamp), d.ID, d.Attempt, d.Cause, d.Provider,
			m.Stream, sequence(m.Sequence), m.Class, m.Channel, m.To)
	}
	return w.Flush()
}

func (c *command) doubtsDecide(f *clientFlags) *cobra.Command {
	var filter doubtFilter
	var in decisionsRequest
	var since, until string
	cmd := &cobra.Command{
		Use:   "decide (ID | --lane … --provider … --tenant … --since … --until … | --all)",
		Short: "Decide one doubt by its message's id, or all that a filter finds",
		Long: `Decisions: sent, they were taken; resend, hand them over again; drop, end them
as failed. Each is made once, and kept with the reason and the key that asked.
With several filters a doubt has to fit all of them. Look first, with --dry-run.`,
		Example: `  stormpost doubts decide msg_… --decision sent --reason "relay log: 250 queued as 4Wx1"
  stormpost doubts decide --lane transactional.email --decision resend --reason "the relay's log is empty" --dry-run`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if filter.Since, err = timeFlag("since", since); err != nil {
				return err
			}
			if filter.Until, err = timeFlag("until", until); err != nil {
				return err
			}
			filtered := filter != (doubtFilter{})
			switch {
			case len(args) == 1 && (filtered || in.All || in.DryRun):
				return usage("an ID goes with no filter, and without --all and --dry-run")
			case len(args) == 0 && !filtered && !in.All:
				return usage("name a message's ID or a filter, or give --all for every doubt")
			case filtered && in.All:
				return usage("--all goes without a filter")
			case len(args) == 0 && cmd.Flags().Changed("attempt"):
				return usage("--attempt goes with an ID")
			}
			cl, err := c.client(*f)
			if err != nil {
				return err
			}
			if len(args) == 1 {
				return c.decideOne(cmd, cl, args[0], in)
			}
			if filtered {
				in.Filter = &filter
			}
			return c.decideMany(cmd, cl, in)
		},
	}
	p := cmd.Flags()
	p.StringVar(&in.Decision, "decision", "", "sent, resend or drop")
	p.StringVar(&in.Reason, "reason", "", "why, for whoever asks later")
	p.BoolVar(&in.DryRun, "dry-run", false, "show how many that is, with a sample, and decide none")
	p.IntVar(&in.attempt, "attempt", 0, "of the message ID, only if it is this attempt that is in doubt")
	p.BoolVar(&in.All, "all", false, "every doubt there is")
	p.StringVar(&filter.Lane, "lane", "", "those of this lane, as transactional.email")
	p.StringVar(&filter.Provider, "provider", "", "those whose answer this provider owes; silent ones are nobody's")
	p.Int32Var(&filter.Tenant, "tenant", 0, "those of this tenant")
	p.StringVar(&since, "since", "", "those that became doubts at this time or later, RFC 3339")
	p.StringVar(&until, "until", "", "those that became doubts before this time, RFC 3339")
	for _, name := range []string{"decision", "reason"} {
		_ = cmd.MarkFlagRequired(name) // it is there
	}
	return cmd
}

// timeFlag is a flag's time, nil without one.
func timeFlag(name, text string) (*time.Time, error) {
	if text == "" {
		return nil, nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err == nil {
		_, err = at.MarshalText() // an offset of 24 h can be read, and not be sent
	}
	if err != nil {
		return nil, usage("--%s: want a time as 2026-01-02T15:04:05Z, not %q", name, text)
	}
	return &at, nil
}

func (c *command) decideOne(cmd *cobra.Command, cl *client, id string, in decisionsRequest) error {
	body := map[string]any{"decision": in.Decision, "reason": in.Reason}
	if cmd.Flags().Changed("attempt") {
		body["attempt"] = in.attempt
	}
	return ask(cmd.Context(), c, cl, http.MethodPost, "/v1/doubts/"+url.PathEscape(id), body, func(json.RawMessage) error {
		_, err := fmt.Fprintf(c.Out, "%s: %s\n", id, in.Decision)
		return err
	})
}

// decideMany asks until everything that was found is decided.
func (c *command) decideMany(cmd *cobra.Command, cl *client, in decisionsRequest) error {
	var whole decisionsAnswer
	bar := c.progress()
	for more := true; more; {
		var part decisionsAnswer
		if err := cl.call(cmd.Context(), http.MethodPost, "/v1/doubts", nil, in, &part); err != nil {
			if whole.Decided > 0 {
				fmt.Fprintf(c.Err, "%d were decided before this failed; the same command goes on\n", whole.Decided)
			}
			return err
		}
		decided := whole.Decided + part.Decided
		if whole.By == "" {
			whole = part
		}
		whole.Decided, whole.More = decided, part.More
		bar.tell(decided, whole.Matched)
		more = part.More && part.Decided > 0
	}
	if c.json {
		return c.printJSON(whole)
	}
	for lane, n := range whole.Lanes {
		fmt.Fprintf(c.Out, "%s: %d\n", lane, n)
	}
	for cause, n := range whole.Causes {
		fmt.Fprintf(c.Out, "%s: %d\n", cause, n)
	}
	if in.DryRun {
		fmt.Fprintf(c.Out, "%d doubts would be decided as %s; the oldest:\n", whole.Matched, in.Decision)
		return showDoubts(c.Out, whole.Sample)
	}
	fmt.Fprintf(c.Out, "%d doubts decided: %s\n", whole.Decided, in.Decision)
	return nil
}
