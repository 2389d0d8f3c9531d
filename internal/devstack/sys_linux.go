package devstack

import "syscall"

// setDeathSignal asks the kernel to signal the child when its parent dies.
func setDeathSignal(attr *syscall.SysProcAttr, sig syscall.Signal) { attr.Pdeathsig = sig }

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
