package cli

import (
	"fmt"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// messageAnswer is what the commands show of a message.
type messageAnswer struct {
	ID         string    `json:"id"`
	State      string    `json:"state"`
	Reason     string    `json:"reason"`
	Stream     string    `json:"stream"`
	Sequence   *int64    `json:"sequence"`
	Class      string    `json:"class"`
	Channel    string    `json:"channel"`
	To         string    `json:"to"`
	AcceptedAt time.Time `json:"accepted_at"`
	Timeline   []struct {
		At    time.Time `json:"at"`
		Event string    `json:"event"`
	} `json:"timeline"`
}

func (c *command) messages() *cobra.Command {
	var f clientFlags
	var pages paging
	var filter struct{ state, class, channel, to, tag, stream, since, key string }
	cmd := &cobra.Command{
		Use:   "messages [ID]",
		Short: "Ask what became of messages: queued, sent or dropped?",
		Example: `  stormpost messages
  stormpost messages msg_…
  stormpost messages --state in_doubt --class transactional
  stormpost messages cancel msg_…`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client(f)
			if err != nil {
				return err
			}
			if len(args) == 1 {
				return c.showMessage(cmd, cl, http.MethodGet, args[0])
			}
			q, err := pages.query()
			if err != nil {
				return err
			}
			for name, v := range map[string]string{"state": filter.state, "class": filter.class, "channel": filter.channel, "to": filter.to,
				"tag": filter.tag, "stream": filter.stream, "since": filter.since, "idempotency_key": filter.key} {
				if v != "" {
					q.Set(name, v)
				}
			}
			return list(cmd.Context(), c, cl, "/v1/messages", q, c.showMessages)
		},
	}
	f.add(cmd)
	p := cmd.Flags()
	p.StringVar(&filter.state, "state", "", "only of this state")
	p.StringVar(&filter.class, "class", "", "only of this class")
	p.StringVar(&filter.channel, "channel", "", "only of this channel")
	p.StringVar(&filter.to, "to", "", "only to this recipient")
	p.StringVar(&filter.tag, "tag", "", "only with this tag")
	p.StringVar(&filter.stream, "stream", "", "only of this stream")
	p.StringVar(&filter.since, "since", "", "only accepted since this time, RFC 3339")
	p.StringVar(&filter.key, "idempotency-key", "", "only those submitted under this key")
	pages.add(cmd)
	cmd.AddCommand(&cobra.Command{
		Use:   "cancel ID",
		Short: "Cancel a message that is not handed over yet",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client(f)
			if err != nil {
				return err
			}
			return c.showMessage(cmd, cl, http.MethodDelete, args[0])
		},
	})
	return cmd
}

func (c *command) showMessage(cmd *cobra.Command, cl *client, method, id string) error {
	return ask(cmd.Context(), c, cl, method, "/v1/messages/"+url.PathEscape(id), nil, c.showTimeline)
}

func (c *command) showTimeline(m messageAnswer) error {
	w := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "id\t%s\nstate\t%s\n", m.ID, m.State)
	if m.Reason != "" {
		fmt.Fprintf(w, "reason\t%s\n", m.Reason)
	}
	fmt.Fprintf(w, "number\t%s/%s\nlane\t%s.%s\nto\t%s\n", m.Stream, sequence(m.Sequence), m.Class, m.Channel, m.To)
	for _, e := range m.Timeline {
		fmt.Fprintf(w, "%s\t%s\n", e.At.Local().Format(time.StampMilli), e.Event)
	}
	return w.Flush()
}

func (c *command) showMessages(all []messageAnswer) error {
	w := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ACCEPTED\tID\tSTATE\tNUMBER\tLANE\tTO")
	for _, m := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s/%s\t%s.%s\t%s\n", m.AcceptedAt.Local().Format(time.Stamp), m.ID, m.State, m.Stream, sequence(m.Sequence), m.Class, m.Channel, m.To)
	}
	return w.Flush()
}

func sequence(n *int64) string {
	if n == nil {
		return "-"
	}
	return fmt.Sprint(*n)
}
