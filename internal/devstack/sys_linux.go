package devstack

import (
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// setDeathSignal asks the kernel to signal the child when its parent dies.
func setDeathSignal(attr *syscall.SysProcAttr, sig syscall.Signal) { attr.Pdeathsig = sig }

// confine keeps a process that was just started, and all threads that it begins,
// on the first processor that this one may use.
func confine(pid int) {
	var mine, one unix.CPUSet
	if unix.SchedGetaffinity(0, &mine) != nil {
		return
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if mine.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	_ = unix.SchedSetaffinity(pid, &one) // it has ended, or may not: it's a courtesy
}

// unconfine gives all threads of a process the processors that this one may use.
func unconfine(pid int) {
	var mine unix.CPUSet
	if unix.SchedGetaffinity(0, &mine) != nil {
		return
	}
	done := make(map[int]bool)
	for more := true; more; { // one may have been begun meanwhile
		more = false
		threads, _ := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
		for _, t := range threads {
			if tid, err := strconv.Atoi(t.Name()); err == nil && !done[tid] {
				_ = unix.SchedSetaffinity(tid, &mine)
				done[tid], more = true, true
			}
		}
	}
}

const haveUserNamespaces = true

// userNamespace makes a process run in a user namespace of its own, where the
// caller's user is uid and its group gid (user_namespaces(7)). The kernel lets
// one entry each be mapped without any privilege.
func userNamespace(uid, gid int) *syscall.SysProcAttr {
	one := func(inside, outside int) []syscall.SysProcIDMap {
		return []syscall.SysProcIDMap{{ContainerID: inside, HostID: outside, Size: 1}}
	}
	return &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: one(uid, syscall.Geteuid()),
		GidMappings: one(gid, syscall.Getegid()),
	}
}
