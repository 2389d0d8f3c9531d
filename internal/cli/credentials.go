package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// credentialAnswer is what the command shows of a credential.
type credentialAnswer struct {
	Name        string     `json:"name"`
	Source      string     `json:"source"`
	Health      string     `json:"health"`
	Trouble     string     `json:"trouble"`
	ExpiresAt   *time.Time `json:"expires_at"`
	LastUsed    *time.Time `json:"last_used_at"`
	LastWorked  *time.Time `json:"last_worked_at"`
	Refreshed   *time.Time `json:"refreshed_at"`
	NextRefresh *time.Time `json:"next_refresh_at"`
	Generations []struct {
		Number     int        `json:"number"`
		State      string     `json:"state"`
		Label      string     `json:"label"`
		Kept       bool       `json:"kept"`
		Received   time.Time  `json:"received_at"`
		ExpiresAt  *time.Time `json:"expires_at"`
		LastWorked *time.Time `json:"last_worked_at"`
		Reply      string     `json:"reply"`
	} `json:"generations"`
}

func (c *command) credentials() *cobra.Command {
	f := clientFlags{operator: true}
	cmd := &cobra.Command{
		Use:   "credentials",
		Short: "See what the process signs in with, and how that is doing",
		Long: `See the passwords, tokens and keys that the process behind the API signs in with:
where each comes from, its generations, until when they are valid, when they were
last used, and what is wrong. No secret is ever shown. The key needs the scope
operator.

Health is working; unproven (no service has accepted it yet); expiring_soon;
refresh_failing (the last one is still in use); fell_back (the last good one is in
use instead of the newest); rejected; or missing. A generation that is (from disk)
was kept there by an earlier process (secrets.safe): the source has not given it to
this one.

With --json it prints {"items": [...]} as GET /v1/credentials answers.`,
		Example: `  stormpost credentials
  stormpost credentials test fcm`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client(f)
			if err != nil {
				return err
			}
			return list(cmd.Context(), c, cl, "/v1/credentials", nil, c.showCredentials)
		},
	}
	f.add(cmd)
	cmd.AddCommand(c.testCredential(&f))
	return cmd
}

func (c *command) showCredentials(all []credentialAnswer) error {
	if len(all) == 0 {
		fmt.Fprintln(c.Out, "no credentials: this process signs in nowhere")
		return nil
	}
	at := func(t *time.Time, none string) string {
		if t == nil {
			return none
		}
		return t.Local().Format(time.Stamp)
	}
	var out bytes.Buffer
	for n, i := range all {
		if n > 0 {
			fmt.Fprintln(&out)
		}
		w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
		fmt.Fprintf(w, "%s\t%s\n", i.Name, i.Health)
		if i.Trouble != "" {
			fmt.Fprintf(w, "  trouble\t%s\n", i.Trouble)
		}
		fmt.Fprintf(w, "  from\t%s\n", i.Source)
		fmt.Fprintf(w, "  used\t%s\n", at(i.LastUsed, "never"))
		fmt.Fprintf(w, "  worked\t%s\n", at(i.LastWorked, "never"))
		fmt.Fprintf(w, "  refreshed\t%s, next %s\n", at(i.Refreshed, "never"), at(i.NextRefresh, "when needed"))
		if err := w.Flush(); err != nil {
			return err
		}
		w = tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
		for _, g := range i.Generations {
			state := g.State
			if g.Kept {
				state += " (from disk)"
			}
			fmt.Fprintf(w, "  #%d\t%s\t%s\tsince %s\tuntil %s\tworked %s\t%s\n", g.Number, state, g.Label,
				g.Received.Local().Format(time.Stamp), at(g.ExpiresAt, "replaced"), at(g.LastWorked, "never"), g.Reply)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	_, err := out.WriteTo(c.Out)
	return err
}

func (c *command) testCredential(f *clientFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "test NAME",
		Short: "Sign in with a credential, now",
		Long: `Have the process behind the API sign in wherever it uses the credential, and hand
nothing over. One that no route uses is only fetched. It exits with 1 if that
fails anywhere.

With --json it prints {"name", "ok", "tests": [{"route", "ok", "error"}]}.`,
		Example: `  stormpost credentials test fcm`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client(*f)
			if err != nil {
				return err
			}
			var raw json.RawMessage
			if err := cl.call(cmd.Context(), http.MethodPost, "/v1/credentials/"+url.PathEscape(args[0])+"/test", nil, nil, &raw); err != nil {
				return fmt.Errorf("credential %s: %w", args[0], err)
			}
			var answer struct {
				OK    bool `json:"ok"`
				Tests []struct {
					Route string `json:"route"`
					OK    bool   `json:"ok"`
					Error string `json:"error"`
				} `json:"tests"`
			}
			if err := readAnswer(raw, &answer); err != nil {
				return err
			}
			if c.json {
				if err := c.printJSON(raw); err != nil {
					return err
				}
			} else {
				for _, t := range answer.Tests {
					what := "signed in to " + t.Route
					if t.Route == "" {
						what = "fetched; no route uses it"
					}
					if !t.OK {
						what = fmt.Sprintf("failed %s: %s", t.Route, t.Error)
					}
					fmt.Fprintln(c.Out, what)
				}
			}
			if !answer.OK {
				return errors.New("credential " + args[0] + " does not work")
			}
			return nil
		},
	}
}
