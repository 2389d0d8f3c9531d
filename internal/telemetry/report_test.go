package telemetry

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestReporterIsSparing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		r := &reporter{log: slog.New(slog.NewTextHandler(&out, nil))}
		r.Handle(nil)
		for range 5 {
			r.Handle(errors.New("refused"))
		}
		time.Sleep(reportEvery)
		r.Handle(errors.New("refused again"))
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(lines) != 2 || !strings.Contains(lines[0], "unsaid=0") || !strings.Contains(lines[1], "unsaid=4") {
			t.Errorf("lines %q, want the first, and one that counts the other 4", lines)
		}
	})
}
