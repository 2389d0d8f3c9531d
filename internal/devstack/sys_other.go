//go:build unix && !linux

package devstack

import "syscall"

// setDeathSignal does nothing: only Linux tells a child of its parent's death.
// The next start in the folder stops the orphan.
func setDeathSignal(*syscall.SysProcAttr, syscall.Signal) {}

func confine(int) {}

func unconfine(int) {}

const haveUserNamespaces = false

func userNamespace(int, int) *syscall.SysProcAttr { return nil }
