package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// holdAnswer is what the commands show of a hold.
type holdAnswer struct {
	ID       int64     `json:"id"`
	Lane     string    `json:"lane"`
	Tenant   int32     `json:"tenant"`
	Provider string    `json:"provider"`
	Tag      string    `json:"tag"`
	Reason   string    `json:"reason"`
	By       string    `json:"by"`
	At       time.Time `json:"at"`
	Aside    int64     `json:"aside"`
}

func (h holdAnswer) what() string {
	switch {
	case h.Lane != "":
		return "lane " + h.Lane
	case h.Provider != "":
		return "provider " + h.Provider
	case h.Tag != "" && h.Tenant != 0:
		return fmt.Sprintf("tag %s of tenant %d", h.Tag, h.Tenant)
	case h.Tag != "":
		return "tag " + h.Tag
	}
	return fmt.Sprintf("tenant %d", h.Tenant)
}

func (c *command) hold() *cobra.Command {
	f := clientFlags{operator: true}
	var in struct {
		Lane     string `json:"lane,omitempty"`
		Tenant   int32  `json:"tenant,omitempty"`
		Provider string `json:"provider,omitempty"`
		Tag      string `json:"tag,omitempty"`
		Reason   string `json:"reason"`
	}
	cmd := &cobra.Command{
		Use:   "hold (--lane LANE | --tenant N | --provider NAME | --tag TAG [--tenant N]) --reason WHY",
		Short: "Hold a lane, a tenant, a provider or a tag: accepted as ever, not handed over",
		Long: `Within 2 seconds of the answer nothing of it is claimed any more. What was
claimed before is handed over. Accepting goes on, messages go on expiring, and
stormpost release lets the others go.

A tag is held of all tenants, or of the one that --tenant names.`,
		Example: `  stormpost hold --lane campaign.email --reason "the list was wrong"
  stormpost hold --tenant 7 --reason "asked by phone"
  stormpost hold --tag spring-sale --tenant 7 --reason "the prices are wrong"
  stormpost hold list`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client(f)
			if err != nil {
				return err
			}
			return c.showHold(cmd, cl, http.MethodPost, "/v1/holds", in, "held")
		},
	}
	f.add(cmd)
	p := cmd.Flags()
	p.StringVar(&in.Lane, "lane", "", "hold this lane, as campaign.email")
	p.Int32Var(&in.Tenant, "tenant", 0, "hold this tenant's messages; with --tag only those with the tag")
	p.StringVar(&in.Provider, "provider", "", "hold what would go to this provider, as smtp")
	p.StringVar(&in.Tag, "tag", "", "hold messages with this tag, of all tenants unless --tenant names one")
	p.StringVar(&in.Reason, "reason", "", "why, for whoever asks later")
	_ = cmd.MarkFlagRequired("reason") // it is there
	cmd.MarkFlagsMutuallyExclusive("lane", "tenant", "provider")
	cmd.MarkFlagsMutuallyExclusive("lane", "provider", "tag")
	cmd.MarkFlagsOneRequired("lane", "tenant", "provider", "tag")
	cmd.AddCommand(&cobra.Command{
		Use:     "list",
		Short:   "List what is held, by whom and why",
		Example: `  stormpost hold list --json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client(f)
			if err != nil {
				return err
			}
			return list(cmd.Context(), c, cl, "/v1/holds", nil, func(all []holdAnswer) error { return showHolds(c.Out, all) })
		},
	})
	return cmd
}

func (c *command) release() *cobra.Command {
	f := clientFlags{operator: true}
	var reason string
	cmd := &cobra.Command{
		Use:   "release (HOLD | MESSAGE --reason WHY)",
		Short: "Release a hold by its number, or a message that is set aside by its id",
		Long: `A hold's number is in stormpost hold list. A message that is held by itself, since
it made a provider's code fail, is released by its id: it is tried once more.`,
		Example: `  stormpost release 7
  stormpost release msg_… --reason "the provider's fault is mended"`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client(f)
			if err != nil {
				return err
			}
			if !strings.HasPrefix(args[0], "msg_") {
				if n, err := strconv.ParseInt(args[0], 10, 64); err != nil || n < 1 {
					return usage("%q is neither a hold's number, as in stormpost hold list, nor a message's id", args[0])
				}
				if reason != "" {
					return usage("--reason goes with a message's id")
				}
				return c.showHold(cmd, cl, http.MethodDelete, "/v1/holds/"+args[0], nil, "released")
			}
			if reason == "" {
				return usage("--reason is needed to release a message")
			}
			path := "/v1/messages/" + url.PathEscape(args[0]) + "/release"
			return ask(cmd.Context(), c, cl, http.MethodPost, path, map[string]string{"reason": reason}, func(json.RawMessage) error {
				_, err := fmt.Fprintf(c.Out, "%s: released\n", args[0])
				return err
			})
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "for a message: why, for whoever asks later")
	return cmd
}

func (c *command) showHold(cmd *cobra.Command, cl *client, method, path string, in any, done string) error {
	return ask(cmd.Context(), c, cl, method, path, in, func(h holdAnswer) error {
		_, err := fmt.Fprintf(c.Out, "hold %d: %s is %s\n", h.ID, h.what(), done)
		return err
	})
}

func showHolds(out io.Writer, all []holdAnswer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "HOLD\tSINCE\tWHAT\tSET ASIDE\tBY\tREASON")
	for _, h := range all {
		fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%s\t%s\n", h.ID, h.At.Local().Format(time.Stamp), h.what(), h.Aside, h.By, h.Reason)
	}
	return w.Flush()
}
