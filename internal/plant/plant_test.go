//go:build !planted

package plant

import "testing"

// An ordinary build has no bug, whatever its environment says.
func TestNothingIsPlanted(t *testing.T) {
	t.Setenv("PLANTED_BUG", string(SkipAttempt))
	if Is(SkipAttempt) {
		t.Error("a bug is planted without the tag")
	}
}
