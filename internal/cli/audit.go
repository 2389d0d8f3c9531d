package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

const (
	// quietFor is how long an audit takes before it tells its progress.
	quietFor = 2 * time.Second
	// mostMissing is how many ranges of missing numbers are shown.
	mostMissing = 1000
	// mostLine bounds a line of an answer that comes in lines.
	mostLine = 1 << 20
)

var errIncomplete = errors.New("something is missing or doesn't add up")

func (c *command) audit() *cobra.Command {
	f := clientFlags{operator: true}
	var stream, lane string
	var tenant int32
	var all bool
	cmd := &cobra.Command{
		Use:   "audit (--stream NAME | --lane LANE | --all)",
		Short: "Prove that nothing is missing: a stream's numbers, or a lane's account",
		Long: `A stream is complete when each number from its first to its last has its
message. A lane's account adds up when accepted = sent + failed + expired +
superseded + canceled + held + in doubt + still to go (queued, waiting, sending).
It is read in one snapshot; lost are messages that nothing will take up any more.
Journaled are messages that Kafka's journal has and the ledger may not have yet: they
are not among the accepted ones before they are entered. Parked are messages that it
had and the ledger has refused: they are not lost, and a person is to see to them.

The exit code is 1 when a number is missing or an account doesn't add up.
Lanes need an operator's key.`,
		Example: `  stormpost audit --stream codes
  stormpost audit --lane transactional.email
  stormpost audit --all --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("tenant") && stream == "" {
				return usage("--tenant goes with --stream only: a lane's account is of all tenants")
			}
			cl, err := c.client(f)
			if err != nil {
				return err
			}
			if stream != "" {
				return c.auditStream(cmd.Context(), cl, stream, tenant)
			}
			return c.auditLanes(cmd.Context(), cl, lane)
		},
	}
	f.add(cmd)
	p := cmd.Flags()
	p.StringVar(&stream, "stream", "", "this stream's numbers")
	p.Int32Var(&tenant, "tenant", 0, "with --stream: whose, for an operator's key; by default the key's own")
	p.StringVar(&lane, "lane", "", "this lane's account, as transactional.email")
	p.BoolVar(&all, "all", false, "every lane's account")
	cmd.MarkFlagsMutuallyExclusive("stream", "lane", "all")
	cmd.MarkFlagsOneRequired("stream", "lane", "all")
	return cmd
}

// streamAudit is a stream's audit, of which answers bring parts.
type streamAudit struct {
	Stream  string           `json:"stream"`
	First   int64            `json:"first"`
	Last    int64            `json:"last"`
	From    int64            `json:"from"`
	To      int64            `json:"to"`
	Next    int64            `json:"next"`
	Missing []numbers        `json:"missing"`
	States  map[string]int64 `json:"states"`
}

type numbers struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

// auditStream asks until every number that there was at first is looked at.
func (c *command) auditStream(ctx context.Context, cl *client, name string, tenant int32) error {
	whole := streamAudit{Missing: []numbers{}, States: map[string]int64{}}
	bar := c.progress()
	q := url.Values{}
	if tenant != 0 {
		q.Set("tenant", strconv.Itoa(int(tenant)))
	}
	for {
		var part streamAudit
		if err := cl.call(ctx, http.MethodGet, "/v1/streams/"+url.PathEscape(name)+"/audit?"+q.Encode(), nil, nil, &part); err != nil {
			return err
		}
		if whole.Stream == "" {
			whole.Stream, whole.First, whole.Last, whole.From, whole.To = part.Stream, part.First, part.Last, part.From, part.Last
			q.Set("to", strconv.FormatInt(whole.Last, 10))
		}
		whole.Missing = append(whole.Missing, part.Missing...)
		whole.Missing = whole.Missing[:min(len(whole.Missing), mostMissing)]
		for state, n := range part.States {
			whole.States[state] += n
		}
		bar.tell(part.To-whole.From+1, whole.Last-whole.From+1)
		if part.Next == 0 {
			break
		}
		if part.Next <= part.From {
			return errors.New("the API's answer can't be read: it goes back")
		}
		q.Set("from", strconv.FormatInt(part.Next, 10))
	}
	var found, want int64
	for _, n := range whole.States {
		found += n
	}
	if whole.Last > 0 {
		want = whole.Last - whole.From + 1
	}
	if err := c.showStream(&whole, found, want); err != nil {
		return err
	}
	if len(whole.Missing) > 0 || found != want {
		return errIncomplete
	}
	return nil
}

func (c *command) showStream(a *streamAudit, found, want int64) error {
	if c.json {
		return c.printJSON(a)
	}
	w := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "stream\t%s\nnumbers\t%d to %d\nmissing\t%d\n", a.Stream, a.First, a.Last, want-found)
	for _, r := range a.Missing {
		fmt.Fprintf(w, "\t%d to %d\n", r.From, r.To)
	}
	names := make([]string, 0, len(a.States))
	for state := range a.States {
		names = append(names, state)
	}
	slices.Sort(names)
	for _, state := range names {
		fmt.Fprintf(w, "%s\t%d\n", state, a.States[state])
	}
	return w.Flush()
}

// laneAudit is a lane's account.
type laneAudit struct {
	Lane       string `json:"lane"`
	Accepted   int64  `json:"accepted"`
	Sent       int64  `json:"sent"`
	Failed     int64  `json:"failed"`
	Expired    int64  `json:"expired"`
	Superseded int64  `json:"superseded"`
	Canceled   int64  `json:"canceled"`
	Held       int64  `json:"held"`
	InDoubt    int64  `json:"in_doubt"`
	Queued     int64  `json:"queued"`
	Waiting    int64  `json:"waiting"`
	Sending    int64  `json:"sending"`
	Lost       int64  `json:"lost"`
	AddsUp     bool   `json:"adds_up"`
	Journaled  *int64 `json:"journaled"` // nil: nobody can tell
	Parked     int64  `json:"parked"`
}

func (c *command) auditLanes(ctx context.Context, cl *client, lane string) error {
	path := "/v1/audit"
	if lane != "" {
		path += "?lane=" + url.QueryEscape(lane)
	}
	var raw json.RawMessage
	bar := c.progress()
	err := cl.lines(ctx, path, func(line []byte) error {
		var l struct {
			Done, Total int64
			Audit       json.RawMessage
			Error       json.RawMessage
		}
		if err := readAnswer(line, &l); err != nil {
			return err
		}
		if l.Error != nil {
			var p struct{ Status int }
			_ = json.Unmarshal(l.Error, &p)
			return problem(p.Status, l.Error)
		}
		if raw = l.Audit; raw == nil {
			bar.tell(l.Done, l.Total)
		}
		return nil
	})
	if err != nil {
		return err
	}
	var a struct {
		Total laneAudit
		Lanes []laneAudit
	}
	if err := readAnswer(raw, &a); err != nil {
		return err
	}
	if err := c.showLanes(raw, append(a.Lanes, a.Total)); err != nil {
		return err
	}
	if !a.Total.AddsUp {
		return errIncomplete
	}
	return nil
}

func (c *command) showLanes(raw json.RawMessage, lanes []laneAudit) error {
	if c.json {
		return c.printJSON(raw)
	}
	w := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "LANE\tACCEPTED\tSENT\tFAILED\tEXPIRED\tSUPERSEDED\tCANCELED\tHELD\tIN DOUBT\tTO GO\tLOST\tADDS UP\tJOURNALED\tPARKED")
	for _, l := range lanes {
		adds := "yes"
		if !l.AddsUp {
			adds = "NO"
		}
		journaled := "?"
		if l.Journaled != nil {
			journaled = strconv.FormatInt(*l.Journaled, 10)
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t%d\n", l.Lane, l.Accepted, l.Sent, l.Failed, l.Expired, l.Superseded,
			l.Canceled, l.Held, l.InDoubt, l.Queued+l.Waiting+l.Sending, l.Lost, adds, journaled, l.Parked)
	}
	return w.Flush()
}

// progress tells on standard error how far something is that takes long.
type progress struct {
	out   io.Writer
	start time.Time
	last  time.Time
}

func (c *command) progress() *progress { return &progress{out: c.Err, start: time.Now()} }

func (p *progress) tell(done, total int64) {
	now := time.Now()
	if now.Sub(p.start) < quietFor || now.Sub(p.last) < time.Second || total <= 0 {
		return
	}
	p.last = now
	left := time.Duration(float64(now.Sub(p.start)) * float64(max(0, total-done)) / float64(max(1, done)))
	fmt.Fprintf(p.out, "%d of %d, %d%%, about %s left\n", done, total, 100*done/total, left.Round(time.Second))
}

// lines asks for an answer in lines and hands each one to use.
func (cl *client) lines(ctx context.Context, path string, use func([]byte) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, cl.base+path, nil)
	if err != nil {
		return usage("--api: %v", err)
	}
	req.Header.Set("Authorization", "Bearer "+cl.key)
	req.Header.Set("Accept", "application/x-ndjson")
	patient := http.Client{Transport: cl.http.Transport, Timeout: 6 * time.Minute}
	resp, err := patient.Do(req)
	if err != nil {
		return &exitError{exitUnavailable, err}
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, mostLine))
		return problem(resp.StatusCode, b)
	}
	in := bufio.NewScanner(resp.Body)
	in.Buffer(nil, mostLine)
	for in.Scan() {
		if err := use(in.Bytes()); err != nil {
			return err
		}
	}
	if err := in.Err(); err != nil {
		return &exitError{exitUnavailable, err}
	}
	return nil
}
