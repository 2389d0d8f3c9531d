// Command stormpost is the delivery pipeline: see stormpost --help.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/stormpost/stormpost/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Run(ctx, os.Args[1:], cli.OS())
	stop()
	os.Exit(code)
}
