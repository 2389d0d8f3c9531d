package teststack

import (
	"os"
	"strconv"
)

// Scale is what counts of events are divided by: STORMPOST_TEST_SCALE, or 8. 1 is
// all of it.
func Scale() int {
	if n, err := strconv.Atoi(os.Getenv("STORMPOST_TEST_SCALE")); err == nil && n > 0 {
		return n
	}
	return 8
}

// Scaled is n divided by Scale, but at least 1.
func Scaled(n int) int { return max(1, (n+Scale()-1)/Scale()) }
