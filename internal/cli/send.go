package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/stormpost/stormpost/internal/message"
)

type sendFlags struct {
	clientFlags
	from, subject, text, html, file string
	to                              []string
	fcm, title, body                string
	class, stream, key, supersede   string
	sendAt, expiresAt               string
	wait                            time.Duration
}

func (c *command) send() *cobra.Command {
	var f sendFlags
	cmd := &cobra.Command{
		Use:   "send",
		Short: "Submit an email or a push through the API",
		Long: `What the API refuses with 429 is submitted again when Retry-After says, as long
as --wait allows; what it answers with 503 too, if it has a --key, without which
that could send it twice.`,
		Example: `  stormpost send --from app@example.com --to you@example.com --subject Hi --text "Hello"
  stormpost send --fcm DEVICE_TOKEN --title Hi --body "Hello"
  stormpost send --from app@example.com --to you@example.com --text "Code 1234" --supersede-key code-you
  stormpost send --file email.json --key order-17`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.runSend(cmd, f) },
	}
	f.add(cmd)
	p := cmd.Flags()
	p.StringVar(&f.from, "from", "", "sender, as app@example.com or 'App <app@example.com>'")
	p.StringArrayVar(&f.to, "to", nil, "recipient; repeat the flag for more, at most 50")
	p.StringVar(&f.subject, "subject", "", "subject")
	p.StringVar(&f.text, "text", "", "plain text")
	p.StringVar(&f.html, "html", "", "HTML")
	p.StringVar(&f.fcm, "fcm", "", "send a push to this FCM device token instead")
	p.StringVar(&f.title, "title", "", "a push's title")
	p.StringVar(&f.body, "body", "", "a push's text")
	p.StringVar(&f.file, "file", "", "the whole request as JSON from a file, - for standard input")
	p.StringVar(&f.class, "class", "", "transactional (default), trigger or campaign")
	p.StringVar(&f.stream, "stream", "", `stream (default "default")`)
	p.StringVar(&f.key, "key", "", "idempotency key: the same one again sends nothing again")
	p.StringVar(&f.supersede, "supersede-key", "", "of all messages with this key only the newest is sent, at most 255 bytes")
	p.StringVar(&f.sendAt, "send-at", "", "not before this time, RFC 3339")
	p.StringVar(&f.expiresAt, "expires-at", "", "never after this time, RFC 3339")
	p.DurationVar(&f.wait, "wait", time.Minute, "how long to go on trying when the API says to come again later (Retry-After); 0: don't")
	emails, pushes := []string{"from", "to", "subject", "text", "html"}, []string{"fcm", "title", "body"}
	for _, push := range pushes {
		for _, email := range emails {
			cmd.MarkFlagsMutuallyExclusive(push, email)
		}
	}
	for _, other := range append(append(emails, pushes...), "class", "stream", "supersede-key", "send-at", "expires-at") {
		cmd.MarkFlagsMutuallyExclusive("file", other)
	}
	return cmd
}

func (c *command) runSend(cmd *cobra.Command, f sendFlags) error {
	path, request, err := c.sendRequest(f)
	if err != nil {
		return err
	}
	cl, err := c.client(f.clientFlags)
	if err != nil {
		return err
	}
	header := map[string]string{}
	if f.key != "" {
		header["Idempotency-Key"] = f.key
	}
	var answer struct {
		ID       string `json:"id"`
		Messages []struct {
			ID       string `json:"id"`
			To       string `json:"to"`
			State    string `json:"state"`
			Stream   string `json:"stream"`
			Sequence *int64 `json:"sequence"`
		} `json:"messages"`
	}
	if err := cl.callPatiently(cmd.Context(), f.wait, f.key != "", c.Err, http.MethodPost, path, header, request, &answer); err != nil {
		return err
	}
	if c.json {
		return c.printJSON(answer)
	}
	for _, m := range answer.Messages {
		number := "-"
		if m.Sequence != nil {
			number = fmt.Sprint(*m.Sequence)
		}
		fmt.Fprintf(c.Out, "%s  %s  %s/%s  %s\n", m.ID, m.State, m.Stream, number, m.To)
	}
	return nil
}

// sendRequest is the API's path and body for the flags.
func (c *command) sendRequest(f sendFlags) (string, any, error) {
	if f.file != "" {
		return c.requestFromFile(f.file)
	}
	o := message.Options{Class: f.class, Stream: f.stream, SupersedeKey: f.supersede}
	sendAt, err := timeFlag("send-at", f.sendAt)
	if err != nil {
		return "", nil, err
	}
	expiresAt, err := timeFlag("expires-at", f.expiresAt)
	if err != nil {
		return "", nil, err
	}
	if sendAt != nil {
		o.SendAt = *sendAt
	}
	if expiresAt != nil {
		o.ExpiresAt = *expiresAt
	}
	if f.fcm != "" {
		return "/v1/pushes", &message.Push{
			Platform: "fcm", To: message.Target{Token: f.fcm},
			Notification: &message.Notification{Title: f.title, Body: f.body}, Options: o,
		}, nil
	}
	if f.from == "" || len(f.to) == 0 {
		return "", nil, usage("want --from and --to, or --fcm, or --file")
	}
	return "/v1/emails", &message.Email{From: f.from, To: f.to, Subject: f.subject, Text: f.text, HTML: f.html, Options: o}, nil
}

func (c *command) requestFromFile(path string) (string, any, error) {
	in := c.In
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return "", nil, &exitError{exitUsage, err}
		}
		defer file.Close()
		in = file
	}
	b, err := io.ReadAll(in)
	if err != nil {
		return "", nil, err
	}
	var kind struct {
		Platform *json.RawMessage `json:"platform"`
	}
	if err := json.Unmarshal(b, &kind); err != nil {
		return "", nil, usage("--file: not JSON: %v", err)
	}
	if kind.Platform != nil {
		return "/v1/pushes", json.RawMessage(b), nil
	}
	return "/v1/emails", json.RawMessage(b), nil
}
