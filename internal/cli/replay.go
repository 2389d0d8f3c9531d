package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

const (
	// followEvery is how often a replay is asked how far it is.
	followEvery = time.Second
	// followPatience is for how long the API may be away meanwhile.
	followPatience = time.Minute
)

// replayFilter is a request's filter; nil fields are left out.
type replayFilter struct {
	Lane     string     `json:"lane,omitempty"`
	State    string     `json:"state,omitempty"`
	Provider string     `json:"provider,omitempty"`
	Tenant   int32      `json:"tenant,omitempty"`
	Stream   string     `json:"stream,omitempty"`
	Since    *time.Time `json:"since,omitempty"`
	Until    *time.Time `json:"until,omitempty"`
	Tag      string     `json:"tag,omitempty"`
}

// String is the filter as flags.
func (f replayFilter) String() string {
	var all []string
	for _, one := range [][2]string{{"lane", f.Lane}, {"state", f.State}, {"provider", f.Provider}, {"stream", f.Stream}, {"tag", f.Tag}} {
		if one[1] != "" {
			all = append(all, "--"+one[0]+" "+one[1])
		}
	}
	if f.Tenant != 0 {
		all = append(all, fmt.Sprint("--tenant ", f.Tenant))
	}
	if f.Since != nil {
		all = append(all, "--since "+f.Since.Format(time.RFC3339))
	}
	if f.Until != nil {
		all = append(all, "--until "+f.Until.Format(time.RFC3339))
	}
	if len(all) == 0 {
		return "--all"
	}
	return strings.Join(all, " ")
}

type replayRequest struct {
	Filter  *replayFilter `json:"filter,omitempty"`
	All     bool          `json:"all,omitempty"`
	ID      string        `json:"id,omitempty"`
	Attempt int           `json:"attempt,omitempty"`
	Rate    int           `json:"rate,omitempty"`
	Reason  string        `json:"reason,omitempty"`
	DryRun  bool          `json:"dry_run,omitempty"`
	Cursor  string        `json:"cursor,omitempty"`
}

type replayLeft struct {
	Count  int64           `json:"count"`
	Why    string          `json:"why"`
	Sample []messageAnswer `json:"sample,omitempty"`
}

// replayAnswer is what the commands show of a replay.
type replayAnswer struct {
	ID        int64                 `json:"id"`
	Message   string                `json:"message"`
	Filter    replayFilter          `json:"filter"`
	Status    string                `json:"status"`
	Rate      int                   `json:"rate"`
	Reason    string                `json:"reason"`
	By        string                `json:"by"`
	At        time.Time             `json:"at"`
	StoppedBy string                `json:"stopped_by"`
	ToSend    int64                 `json:"to_send"`
	Given     int64                 `json:"given"`
	LeftOut   map[string]replayLeft `json:"left_out"`
	Sample    []messageAnswer       `json:"sample,omitempty"`
	ETA       *float64              `json:"eta_seconds"`
	Next      string                `json:"next"`
}

func (r replayAnswer) what() string {
	if r.Message != "" {
		return r.Message
	}
	return r.Filter.String()
}

func (r replayAnswer) eta() string {
	if r.ETA == nil {
		return "-"
	}
	return time.Duration(*r.ETA * float64(time.Second)).Round(time.Second).String()
}

func (c *command) replay() *cobra.Command {
	f := clientFlags{operator: true}
	var in replayRequest
	var filter replayFilter
	var since, until string
	var detach bool
	cmd := &cobra.Command{
		Use:   "replay (--lane … --state … --provider … --tenant … --stream … --since … --until … --tag … | --all | ID) --reason WHY",
		Short: "Send again what failed or is held, or one message by its id",
		Long: `Of the messages that fit all of the filters it sends again those that certainly
were not taken: failed ones, which a provider refused, and held ones. Left out
are those that were sent, or may have been, have expired, are superseded,
canceled, in doubt, or go by themselves, and those to suppressed recipients. Look
first, with --dry-run.

It is worked on by processes with the role recovery, most urgent class first, at
most --rate messages a second and never more than providers take. It survives
them: kill -9, and another goes on. This command only watches; ^C leaves the
replay running.

A message that was sent, or may have been, is only sent again by its ID. So are
one that was dropped while in doubt, and one held as key_conflict.`,
		Example: `  stormpost replay --provider smtp --since 2026-01-02T15:04:05Z --dry-run
  stormpost replay --lane transactional.email --state failed --rate 50 --reason "the relay's blocklist is mended"
  stormpost replay msg_… --reason "the customer asked for it again"`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if filter.Since, err = timeFlag("since", since); err != nil {
				return err
			}
			if filter.Until, err = timeFlag("until", until); err != nil {
				return err
			}
			filtered := filter != (replayFilter{})
			switch {
			case len(args) == 1 && !strings.HasPrefix(args[0], "msg_"):
				return usage("%q is neither a message's id nor list, show, pause, resume or cancel", args[0])
			case len(args) == 1 && (filtered || in.All || in.DryRun || in.Rate != 0):
				return usage("an ID goes with no filter, and without --all, --dry-run and --rate")
			case len(args) == 0 && !filtered && !in.All:
				return usage("name a filter, or a message's ID, or give --all for every message")
			case filtered && in.All:
				return usage("--all goes without a filter")
			case in.Reason == "" && !in.DryRun:
				return usage("--reason is needed: why, for whoever asks later")
			}
			cl, err := c.client(f)
			if err != nil {
				return err
			}
			if filtered {
				in.Filter = &filter
			}
			switch {
			case len(args) == 1:
				return c.replayOne(cmd.Context(), cl, args[0], in)
			case in.DryRun:
				return c.replayLook(cmd.Context(), cl, in)
			}
			return c.replayMany(cmd.Context(), cl, in, detach)
		},
	}
	f.add(cmd)
	p := cmd.Flags()
	p.StringVar(&filter.Lane, "lane", "", "messages of this lane, as transactional.email")
	p.StringVar(&filter.State, "state", "", "failed or held; both by default")
	p.StringVar(&filter.Provider, "provider", "", "those that this provider answered last, as smtp")
	p.Int32Var(&filter.Tenant, "tenant", 0, "those of this tenant")
	p.StringVar(&filter.Stream, "stream", "", "those of the streams of this name")
	p.StringVar(&since, "since", "", "those accepted at this time or later, RFC 3339")
	p.StringVar(&until, "until", "", "those accepted before this time, RFC 3339")
	p.StringVar(&filter.Tag, "tag", "", "those with this tag")
	p.IntVar(&in.Rate, "rate", 0, "messages a second, at most (default 100)")
	p.BoolVar(&in.DryRun, "dry-run", false, "show how many would be sent, and how many not and why, with samples, and send none")
	p.BoolVar(&in.All, "all", false, "every message there is")
	p.StringVar(&in.Reason, "reason", "", "why, for whoever asks later")
	p.BoolVar(&detach, "detach", false, "don't wait until it is done")
	cmd.AddCommand(c.replayList(&f), c.replayShow(&f))
	for _, turn := range [][3]string{
		{"pause", "Pause a replay: what is given already is sent"},
		{"resume", "Go on with a replay that is paused"},
		{"cancel", "End a replay for good: what is given already is sent"},
	} {
		cmd.AddCommand(c.replayTurn(&f, turn[0], turn[1]))
	}
	return cmd
}

// replayOne names the attempt that it has seen last: so a command that is
// repeated by mistake while the first is on its way does nothing.
func (c *command) replayOne(ctx context.Context, cl *client, id string, in replayRequest) error {
	var m struct {
		Attempts []struct {
			Number int `json:"number"`
		} `json:"attempts"`
	}
	if err := cl.call(ctx, http.MethodGet, "/v1/messages/"+url.PathEscape(id), nil, nil, &m); err != nil {
		return err
	}
	if len(m.Attempts) == 0 {
		return &exitError{exitRefused, errors.New("nobody has tried to send it yet: it goes by itself")}
	}
	in.ID, in.Attempt = id, m.Attempts[len(m.Attempts)-1].Number
	return c.showReplay(ctx, cl, http.MethodPost, "/v1/replays", in)
}

// replayLook adds up the parts of a dry run.
func (c *command) replayLook(ctx context.Context, cl *client, in replayRequest) error {
	whole := replayAnswer{LeftOut: make(map[string]replayLeft)}
	for more := true; more; {
		var part replayAnswer
		if err := cl.call(ctx, http.MethodPost, "/v1/replays", nil, in, &part); err != nil {
			return err
		}
		whole.ToSend += part.ToSend
		if len(whole.Sample) == 0 {
			whole.Sample = part.Sample
		}
		for cause, left := range part.LeftOut {
			if had, ok := whole.LeftOut[cause]; ok {
				left.Count += had.Count
				if len(had.Sample) > 0 {
					left.Sample = had.Sample
				}
			}
			whole.LeftOut[cause] = left
		}
		if more = part.Next != ""; more {
			in.Cursor = part.Next
			fmt.Fprintf(c.Err, "%d to send so far; looking on\n", whole.ToSend)
		}
	}
	if c.json {
		return c.printJSON(struct {
			DryRun  bool                  `json:"dry_run"`
			ToSend  int64                 `json:"to_send"`
			Sample  []messageAnswer       `json:"sample"`
			LeftOut map[string]replayLeft `json:"left_out"`
		}{true, whole.ToSend, whole.Sample, whole.LeftOut})
	}
	fmt.Fprintf(c.Out, "%d messages would be sent\n", whole.ToSend)
	if err := showReplayed(c.Out, whole.Sample); err != nil {
		return err
	}
	return showLeftOut(c.Out, whole.LeftOut)
}

func showReplayed(out io.Writer, some []messageAnswer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, m := range some {
		fmt.Fprintf(w, "  %s\t%s\t%s/%s\t%s.%s\t%s\t%s\n", m.ID, m.State, m.Stream, sequence(m.Sequence), m.Class, m.Channel, m.To, m.Reason)
	}
	return w.Flush()
}

func showLeftOut(out io.Writer, left map[string]replayLeft) error {
	for _, cause := range slices.Sorted(maps.Keys(left)) {
		l := left[cause]
		fmt.Fprintf(out, "%d not, %s: %s\n", l.Count, cause, l.Why)
		if err := showReplayed(out, l.Sample); err != nil {
			return err
		}
	}
	return nil
}

func (c *command) replayMany(ctx context.Context, cl *client, in replayRequest, detach bool) error {
	var r replayAnswer
	if err := cl.call(ctx, http.MethodPost, "/v1/replays", nil, in, &r); err != nil {
		return err
	}
	if detach {
		return c.showReplay(ctx, cl, http.MethodGet, fmt.Sprint("/v1/replays/", r.ID), nil)
	}
	fmt.Fprintf(c.Err, "replay %d; ^C leaves it running\n", r.ID)
	return c.follow(ctx, cl, r.ID)
}

// follow shows how far a replay is until it has ended or is paused. Nothing that
// happens here stops the replay.
func (c *command) follow(ctx context.Context, cl *client, id int64) error {
	path := fmt.Sprint("/v1/replays/", id)
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	answered := time.Now()
	for {
		var r replayAnswer
		err := cl.call(ctx, http.MethodGet, path, nil, nil, &r)
		var away *exitError
		switch {
		case ctx.Err() != nil:
			fmt.Fprintf(c.Err, "\nreplay %d goes on without this command: stormpost replay show %d, or pause or cancel it\n", id, id)
			return nil
		case errors.As(err, &away) && away.code == exitUnavailable && time.Since(answered) < followPatience:
			fmt.Fprintf(c.Err, "the API doesn't answer; replay %d may go on meanwhile\n", id)
		case err != nil:
			return err
		case r.Status != "counting" && r.Status != "running":
			return c.showReplay(ctx, cl, http.MethodGet, path, nil)
		default:
			answered = time.Now()
			fmt.Fprintln(c.Err, r.bar())
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// bar is one line of progress.
func (r replayAnswer) bar() string {
	if r.Status == "counting" {
		return fmt.Sprintf("counting: %d to send so far", r.ToSend)
	}
	const wide = 30
	done := int(wide * min(r.Given, r.ToSend) / max(1, r.ToSend))
	return fmt.Sprintf("[%s%s] %d of %d given, about %s left", strings.Repeat("#", done), strings.Repeat(".", wide-done), r.Given, r.ToSend, r.eta())
}

// showReplay makes a request that a replay is the answer to, and shows it.
func (c *command) showReplay(ctx context.Context, cl *client, method, path string, in any) error {
	return ask(ctx, c, cl, method, path, in, c.tellReplay)
}

func (c *command) tellReplay(r replayAnswer) error {
	fmt.Fprintf(c.Out, "replay %d is %s: %d of %d given, %s, by %s: %s\n", r.ID, r.Status, r.Given, r.ToSend, r.what(), r.By, r.Reason)
	if r.Status == "running" {
		fmt.Fprintf(c.Out, "about %s left, at most %d a second\n", r.eta(), r.Rate)
	}
	return showLeftOut(c.Out, r.LeftOut)
}

func (c *command) replayList(f *clientFlags) *cobra.Command {
	var pages paging
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List replays, newest first, by whom and why",
		Example: `  stormpost replay list --limit 10`,
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
			return list(cmd.Context(), c, cl, "/v1/replays", q, func(all []replayAnswer) error {
				w := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "REPLAY\tAT\tSTATUS\tGIVEN\tOF\tLEFT\tWHAT\tBY\tREASON")
				for _, r := range all {
					fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%d\t%s\t%s\t%s\t%s\n", r.ID, r.At.Local().Format(time.Stamp), r.Status, r.Given, r.ToSend, r.eta(), r.what(), r.By, r.Reason)
				}
				return w.Flush()
			})
		},
	}
	pages.add(cmd)
	return cmd
}

func (c *command) replayShow(f *clientFlags) *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:     "show REPLAY",
		Short:   "Show how far a replay is, and what it left out",
		Example: `  stormpost replay show 7 --follow`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, id, err := c.replayNamed(*f, args[0])
			if err != nil {
				return err
			}
			if follow {
				return c.follow(cmd.Context(), cl, id)
			}
			return c.showReplay(cmd.Context(), cl, http.MethodGet, fmt.Sprint("/v1/replays/", id), nil)
		},
	}
	cmd.Flags().BoolVar(&follow, "follow", false, "watch it until it has ended")
	return cmd
}

func (c *command) replayTurn(f *clientFlags, verb, short string) *cobra.Command {
	return &cobra.Command{
		Use:     verb + " REPLAY",
		Short:   short,
		Example: "  stormpost replay " + verb + " 7",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, id, err := c.replayNamed(*f, args[0])
			if err != nil {
				return err
			}
			return c.showReplay(cmd.Context(), cl, http.MethodPost, fmt.Sprintf("/v1/replays/%d/%s", id, verb), nil)
		},
	}
}

// replayNamed is the client, and a replay's number.
func (c *command) replayNamed(f clientFlags, arg string) (*client, int64, error) {
	var id int64
	if _, err := fmt.Sscanf(arg, "%d", &id); err != nil || id < 1 || fmt.Sprint(id) != arg {
		return nil, 0, usage("want a replay's number, as in stormpost replay list, not %q", arg)
	}
	cl, err := c.client(f)
	return cl, id, err
}
