// Package cli is the command line: one file for each command.
package cli

//go:generate go test -run TestReference . -update

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/internal/config"
)

// Exit codes. They are part of the interface.
const (
	exitOK          = 0
	exitFailed      = 1 // it didn't work
	exitUsage       = 2 // the command line or the configuration is wrong
	exitRefused     = 3 // the API refused the request
	exitUnavailable = 4 // the API or the ledger can't be reached or can't take it now: try again
)

// Env is what a command gets of the process that it runs in.
type Env struct {
	In      io.Reader
	Out     io.Writer
	Err     io.Writer
	Environ []string // NAME=value
}

// OS is the real process's.
func OS() Env { return Env{os.Stdin, os.Stdout, os.Stderr, os.Environ()} }

// exitError is an error that asks for an exit code.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func usage(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// command is what all commands share.
type command struct {
	Env
	configPath string
	json       bool
	began      bool // a command was found, and its arguments were right
}

// Run runs a command line and returns its exit code.
func Run(ctx context.Context, args []string, env Env) int {
	c := &command{Env: env}
	root := c.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(env.Err, "stormpost:", err)
	var e *exitError
	var wrong config.Error
	switch {
	case errors.As(err, &e):
		return e.code
	case errors.As(err, &wrong), errors.Is(err, dedupe.ErrDSN):
		return exitUsage
	case !c.began: // cobra itself refused the command line
		return exitUsage
	}
	return exitFailed
}

// root makes all commands.
func (c *command) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "stormpost",
		Short: "Hand over transactional email and push messages: kept once accepted, sent once, numbered",
		Long: `Stormpost is a delivery pipeline for transactional email and push messages.
What it has accepted it keeps, numbers and sends once, through kill -9 and the
loss of a store.

  stormpost dev                    everything on this machine, for development
  stormpost serve                  API and worker on your PostgreSQL and Kafka

Exit codes: 0 it worked; 1 it didn't; 2 the command line or the configuration
is wrong; 3 the API refused the request; 4 the API (or for keys the ledger)
can't be reached or can't take it now, so try again.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetIn(c.In)
	root.SetOut(c.Out)
	root.SetErr(c.Err)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &exitError{exitUsage, err} })
	root.PersistentFlags().StringVar(&c.configPath, "config", c.get("STORMPOST_CONFIG"), "settings file, stormpost.yaml (or $STORMPOST_CONFIG); commands with --api read none")
	root.PersistentFlags().BoolVar(&c.json, "json", false, "answer in JSON")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(c.dev(), c.serve(), c.migrate(), c.preflight(), c.keys(), c.tenants(), c.credentials(), c.send(), c.messages(), c.audit(), c.doubts(), c.suppressions(), c.hold(), c.release(), c.replay(), c.evacuate(), c.reconcile(), c.lanes(), c.incidents(), c.bench(), c.drill(), c.version())
	c.note(root)
	return root
}

// note has every command note that it began: until then an error is about the
// command line.
func (c *command) note(cmd *cobra.Command) {
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if err := checkGiven(cmd); err != nil {
				return err
			}
			c.began = true
			return run(cmd, args)
		}
	}
	for _, sub := range cmd.Commands() {
		c.note(sub)
	}
}

// What flags need not be: content may be empty, and a path any bytes.
var (
	mayBeEmpty = []string{"subject", "text", "html", "title", "body"}
	mayBeBytes = []string{"config", "data", "file"}
)

// zeroIsFine is on a flag whose 0 means no bound.
const zeroIsFine = "zero"

// checkGiven refuses flags that were given and say nothing, as by an unset
// variable: without them a command may ask for more. It also refuses numbers
// below 1, times below 0, and text that JSON would change.
func checkGiven(cmd *cobra.Command) (err error) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		value := f.Value.String()
		texts := []string{value}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			texts = list.GetSlice()
		}
		broken := func(s string) bool { return !utf8.ValidString(s) }
		switch kind := f.Value.Type(); {
		case kind == "int" || kind == "int32":
			if _, fine := f.Annotations[zeroIsFine]; value == "0" && !fine || value[0] == '-' {
				err = usage("--%s: want 1 or more, not %s", f.Name, value)
			}
		case kind == "duration" && value[0] == '-':
			err = usage("--%s: want no time below 0, not %s", f.Name, value)
		case (len(texts) == 0 || slices.Contains(texts, "")) && !slices.Contains(mayBeEmpty, f.Name):
			err = usage("--%s is empty: give it a value, or leave it out", f.Name)
		case slices.ContainsFunc(texts, broken) && !slices.Contains(mayBeBytes, f.Name):
			err = usage("--%s: is not UTF-8", f.Name)
		}
	})
	return err
}

func (e Env) get(name string) string {
	for _, kv := range e.Environ {
		if len(kv) > len(name) && kv[len(name)] == '=' && kv[:len(name)] == name {
			return kv[len(name)+1:]
		}
	}
	return ""
}

// settings loads the configuration.
func (c *command) settings() (config.Config, error) {
	return config.Load(c.configPath, c.Environ)
}

// dsn is the ledger's address from the configuration.
func (c *command) dsn() (string, error) {
	cfg, err := c.settings()
	if err != nil {
		return "", err
	}
	if cfg.DSN == "" {
		return "", usage("dsn is not set: give it in the settings file, or as STORMPOST_DSN")
	}
	return cfg.DSN.Reveal(), nil
}

func (c *command) printJSON(v any) error {
	e := json.NewEncoder(c.Out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
