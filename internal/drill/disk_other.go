//go:build !linux

package drill

import "context"

func prepareTorture(context.Context, *Stage) error { return nil }

func (s *Stage) diskless() string { return "only Linux has one that can be filled" }

func (s *Stage) harmDisk() deed { return deed{do: nothing, bit: yes, undo: nothing} }
