package devstack

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/stormpost/stormpost/internal/atomicfile"
)

// keptText reads the one-line file path. When it isn't there, fresh makes the
// text and the file, durably, for the owner alone.
func keptText(path string, fresh func() string) (string, error) {
	b, err := os.ReadFile(path)
	if err == nil && len(strings.TrimSpace(string(b))) > 0 {
		return strings.TrimSpace(string(b)), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	text := fresh()
	return text, keepText(path, text)
}

// keepText writes the one-line file path whole or not at all.
func keepText(path, text string) error {
	return atomicfile.Write(path, []byte(text+"\n"))
}
