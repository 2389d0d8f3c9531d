package teststack

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// RaceVariable has Build build with the race detector, when it is set: `make race`
// sets it.
const RaceVariable = "STORMPOST_TEST_RACE"

// Build builds the program into dir, with build tags, and gives its path.
func Build(dir, tags string) (string, error) {
	path := filepath.Join(dir, "stormpost")
	args := []string{"build", "-tags", tags, "-o", path}
	if os.Getenv(RaceVariable) != "" {
		args = append(args, "-race")
	}
	out, err := exec.Command("go", append(args, "github.com/stormpost/stormpost/cmd/stormpost")...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
}

// RaceEnv is what the processes of the program in dir have in their environment,
// so that Races knows what the race detector says of them, killed or not.
func RaceEnv(dir string) string { return "GORACE=log_path=" + filepath.Join(dir, "race") }

// Races is what the race detector has said, told once.
func Races(dir string) string {
	var all strings.Builder
	reports, _ := filepath.Glob(filepath.Join(dir, "race.*"))
	for _, name := range reports {
		if b, err := os.ReadFile(name); err == nil { // else another test has told it
			all.Write(b)
			os.Remove(name)
		}
	}
	return all.String()
}
