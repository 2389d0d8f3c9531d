package devstack

import "syscall"

// DieWithParent has a process killed when the thread that started it ends,
// where the system can do that: start it from a goroutine that is locked to its
// thread until the process has ended.
func DieWithParent(attr *syscall.SysProcAttr) { setDeathSignal(attr, syscall.SIGKILL) }
