package cli

import (
	"fmt"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// laneAnswer is what the command shows of a lane.
type laneAnswer struct {
	Lane      string   `json:"lane"`
	Depth     int64    `json:"depth"`
	Journaled *int64   `json:"journaled"` // nil: nobody can tell
	Waiting   int64    `json:"waiting"`
	OldestAge float64  `json:"oldest_age_seconds"`
	InRate    float64  `json:"in_rate"`
	OutRate   float64  `json:"out_rate"`
	ETA       *float64 `json:"eta_seconds"`
}

func (c *command) lanes() *cobra.Command {
	f := clientFlags{operator: true}
	cmd := &cobra.Command{
		Use:   "lanes",
		Short: "Show each lane's backlog, its rates, and when it will be drained",
		Long: `READY is what could be sent now, WAITING what is scheduled or between attempts,
JOURNALED what is still to come out of Kafka's journal. IN and OUT are messages
accepted (but for those out of the journal) and attempted a second, over the last
20 seconds or since attempts began. DRAINED IN is when nothing will be ready or
journaled, at these rates: "never" while as much comes in as goes out, "?" while
nobody can tell what the journal has.`,
		Example: `  stormpost lanes
  stormpost lanes --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client(f)
			if err != nil {
				return err
			}
			return list(cmd.Context(), c, cl, "/v1/lanes", nil, func(all []laneAnswer) error {
				w := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "LANE\tREADY\tWAITING\tJOURNALED\tOLDEST\tIN/s\tOUT/s\tDRAINED IN")
				for _, l := range all {
					journaled := "?"
					if l.Journaled != nil {
						journaled = strconv.FormatInt(*l.Journaled, 10)
					}
					fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%.1f\t%.1f\t%s\n", l.Lane, l.Depth, l.Waiting, journaled, seconds(l.OldestAge), l.InRate, l.OutRate, l.drained())
				}
				return w.Flush()
			})
		},
	}
	f.add(cmd)
	return cmd
}

func (l laneAnswer) drained() string {
	switch {
	case l.ETA == nil && l.Journaled == nil:
		return "?"
	case l.Depth == 0 && (l.Journaled == nil || *l.Journaled == 0):
		return "-"
	case l.ETA == nil:
		return "never"
	}
	return seconds(*l.ETA)
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(time.Second).String()
}
