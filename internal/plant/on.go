//go:build planted

package plant

import "os"

var planted = Bug(os.Getenv("PLANTED_BUG"))

// Is says whether b is planted.
func Is(b Bug) bool { return b == planted }
