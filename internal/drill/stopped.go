package drill

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
)

// stopped says whether a process stands still, as proc(5) tells: the state comes
// after the name, which is in parentheses. Elsewhere than on Linux nobody tells.
func stopped(pid int) bool {
	if runtime.GOOS != "linux" {
		return pid > 0
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := bytes.Cut(b, []byte(") "))
	return err == nil && bytes.HasPrefix(after, []byte("T"))
}
