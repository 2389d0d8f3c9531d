//go:build !planted

package plant

// Is says whether b is planted.
func Is(Bug) bool { return false }
