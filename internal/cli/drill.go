package cli

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/stormpost/stormpost/internal/drill"
)

func (c *command) drill() *cobra.Command {
	var opt drill.Options
	var list bool
	cmd := &cobra.Command{
		Use:   "drill NAME | --list",
		Short: "Re-enact an outage on real stores, under load, and judge what became of every message",
		Long: `Re-enact an outage: start PostgreSQL and three nodes of Apache Kafka (or use
those that are named), this program's processes and simulated providers; put
them under load in every class and channel; do the harm; heal it; submit
everything again; and compare what the client was answered with what the
providers took. Of a message that no provider has, the API is asked how it ended.
That counts only where it can be so: expired, if its life had ended; superseded,
if one under its key may be newer; in doubt, if a harm was done that would leave a
doubt. It also tells which ids ended as the repeat of another submission without
a key, since these have numbers as well. What it calls sent a provider must have,
and what a provider has it must call sent, or in doubt; and what it told meanwhile
as failed, expired, superseded, canceled or held must be so in the end. Each harm
must be told within 10 s by an incident that is about it, unless the drill undoes
it sooner; of torture's, one may hide another.

The timeline goes to standard error while it runs, the verdict to standard
output. Exit codes: 0 every promise held; 1 one was broken, or there was no
verdict; 2 there is no evidence that the harm was done, or the command line is
wrong. It leaves nothing behind, unless --keep says so.

torture draws its faults from the seed: kill (-9), stop (SIGSTOP), postgres
(killed, hanging, restarted), kafka (one node killed or hanging, or all killed),
network (to either store: cut, half open, late, or losing answers), slow, refuse
and lose (by the providers), disk (no room for PostgreSQL's tables, as root on
Linux alone) and clock (a worker's wall clock, minutes on or back). What is left
out is named. The same seed, minutes and kinds draw the same faults at the same
times; what they meet is the machine's affair.

It needs PostgreSQL's server programs, Java 17 and, once, Maven; what is missing
is named.`,
		Example: `  stormpost drill --list
  stormpost drill corrupt-cluster
  stormpost drill corrupt-cluster --messages 5000 --rate 100 --seed 7 --json
  stormpost drill torture --minutes 20 --seed 42
  stormpost drill torture --minutes 2 --rate 50 --faults kill,lose`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if list {
				return c.listDrills()
			}
			if len(args) == 0 {
				return usage("which drill? See stormpost drill --list")
			}
			d, err := drill.Find(args[0])
			if err == nil {
				err = drawn(cmd, d, &opt)
			}
			if err == nil {
				err = opt.Validate(d)
			}
			if err != nil {
				return &exitError{exitUsage, err}
			}
			if opt.Binary, err = os.Executable(); err != nil {
				return err
			}
			opt.Progress = c.Err
			res, err := drill.Run(cmd.Context(), d, opt)
			if err != nil {
				return err
			}
			if err := c.printDrill(res); err != nil {
				return err
			}
			return verdictOf(res)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&list, "list", false, "explain each drill, with the outage that it re-enacts")
	f.Uint64Var(&opt.Seed, "seed", 1, "of the load and of all chance")
	f.IntVar(&opt.Messages, "messages", 100_000, "messages at least; the load goes on until the harm is over (torture: as many as come in its minutes)")
	f.IntVar(&opt.Rate, "rate", 0, "messages a second, once grown to (default: the drill's own, 500, 200 or, of torture, 100)")
	f.StringVar(&opt.DSN, "dsn", "", "a PostgreSQL for a database of the drill's own (default: a server of its own)")
	f.StringSliceVar(&opt.Brokers, "brokers", nil, "a Kafka, host:port,… (default: a cluster of its own)")
	f.Float64Var(&opt.Minutes, "minutes", 5, "torture: for how long faults are drawn")
	f.StringSliceVar(&opt.Faults, "faults", nil, "torture: only these kinds (default: all)")
	f.BoolVar(&opt.Keep, "keep", false, "keep the folder with the client's and the providers' files and all logs")
	return cmd
}

// verdictOf is nil if the drill passed. Without evidence of the harm nothing is
// shown, unless a promise was broken all the same.
func verdictOf(res *drill.Result) error {
	switch {
	case len(res.Broken) > 0:
		return errors.New("a promise was broken")
	case !res.Bit:
		return &exitError{exitUsage, errors.New("there is no evidence that the harm was done")}
	case !res.Pass:
		return errors.New("a promise was broken")
	}
	return nil
}

// drawn is for drills that draw their faults: unless it is said how many messages
// there are to be, there are as many as come in that time.
func drawn(cmd *cobra.Command, d drill.Drill, opt *drill.Options) error {
	if d.Shape.Faults == nil {
		if cmd.Flags().Changed("minutes") {
			return fmt.Errorf("--minutes: %s draws no faults", d.Name)
		}
		return nil
	}
	if !cmd.Flags().Changed("messages") {
		opt.Messages = min(max(100, int(opt.Minutes*60*float64(cmp.Or(opt.Rate, d.Shape.Rate)))), drill.MostMessages)
	}
	return nil
}

func (c *command) listDrills() error {
	if c.json {
		type item struct {
			Name   string `json:"name"`
			Outage string `json:"outage"`
			About  string `json:"about"`
		}
		var items []item
		for _, d := range drill.All() {
			items = append(items, item{d.Name, oneLine(d.Outage), oneLine(d.About)})
		}
		return c.printJSON(items)
	}
	for _, d := range drill.All() {
		if _, err := fmt.Fprintf(c.Out, "%s\n  %s\n  %s\n\n", d.Name, oneLine(d.Outage), oneLine(d.About)); err != nil {
			return err
		}
	}
	return nil
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

func (c *command) printDrill(r *drill.Result) error {
	if c.json {
		return c.printJSON(r)
	}
	w := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
	verdict := "PASSED"
	if !r.Pass {
		verdict = "FAILED"
	}
	fmt.Fprintf(w, "drill\t%s, seed %d\t%s\n", r.Drill, r.Seed, verdict)
	for _, row := range []struct {
		name string
		n    int
	}{
		{"accepted", r.Accepted}, {"sent", r.Sent}, {"in doubt", r.InDoubt}, {"expired", r.Expired}, {"superseded", r.Superseded},
		{"lost", r.Lost}, {"doubled", r.Doubled}, {"gaps", r.Gaps}, {"stale", r.Stale}, {"seconds with a 503", r.Refused503},
	} {
		fmt.Fprintf(w, "%s\t%d\n", row.name, row.n)
	}
	fmt.Fprintf(w, "time to notice\t%s\n", orNever(r.NoticeS))
	fmt.Fprintf(w, "time to recover\t%s\n", orNever(r.RecoverS))
	for name, v := range r.Evidence {
		fmt.Fprintf(w, "evidence: %s\t%v\n", name, v)
	}
	for _, b := range r.Broken {
		fmt.Fprintf(w, "BROKEN\t%s\n", b)
	}
	return w.Flush()
}

func orNever(s *float64) string {
	if s == nil {
		return "not seen"
	}
	return (time.Duration(*s*1000) * time.Millisecond).String()
}
