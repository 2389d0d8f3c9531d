package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// account says as whom PostgreSQL runs. It refuses to run as root.
type account struct {
	uid, gid int                         // of the files, as this process sees them
	attr     func() *syscall.SysProcAttr // for a new process
}

// serverAccount picks how to run the programs in bin on the files in dir:
//
//   - Anybody but root: as they are.
//   - Root: in a user namespace in which root is somebody else; files stay root's.
//   - Root where no namespace can be made: as another user of the system.
//
// A data folder that is there already decides by its owner.
func serverAccount(ctx context.Context, bin, data string) (account, error) {
	if os.Geteuid() != 0 {
		return account{os.Geteuid(), os.Getegid(), func() *syscall.SysProcAttr { return new(syscall.SysProcAttr) }}, nil
	}
	if st, err := os.Stat(data); err == nil {
		if own := st.Sys().(*syscall.Stat_t); own.Uid != 0 {
			return otherUser(int(own.Uid), int(own.Gid)), nil
		}
	}
	uid, gid, err := nonRoot()
	if err != nil {
		return account{}, err
	}
	nsErr := error(errors.ErrUnsupported)
	if haveUserNamespaces {
		ns := account{0, 0, func() *syscall.SysProcAttr { return userNamespace(uid, gid) }}
		if nsErr = tryAccount(ctx, ns, bin); nsErr == nil {
			return ns, nil
		}
	}
	if _, err := os.Stat(data); err == nil {
		return account{}, fmt.Errorf("%s belongs to root, as whom PostgreSQL doesn't run, and no user namespace can be made: %w", data, nsErr)
	}
	return otherUser(uid, gid), nil
}

func otherUser(uid, gid int) account {
	return account{uid, gid, func() *syscall.SysProcAttr {
		return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}}
}

// nonRoot is a user that the system knows: initdb looks the effective user up
// by number and fails when it has no name.
func nonRoot() (uid, gid int, err error) {
	for _, name := range []string{"postgres", "nobody", "daemon"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errU := strconv.Atoi(u.Uid)
		gid, errG := strconv.Atoi(u.Gid)
		if errors.Join(errU, errG) == nil && uid > 0 {
			return uid, gid, nil
		}
	}
	return 0, 0, errors.New("PostgreSQL doesn't run as root, and there is no user postgres, nobody or daemon to run it as: run this as another user")
}

// tryAccount starts a program that does nothing, to see whether the system
// lets a run.
func tryAccount(ctx context.Context, a account, bin string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "postgres"), "--version")
	cmd.SysProcAttr = a.attr()
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run postgres --version: %w", err)
	}
	return nil
}

// reach fails, naming the folder that blocks, unless a may enter every folder
// on the way to dir. Root's rights don't count: PostgreSQL won't have them.
func (a account) reach(dir string) error {
	for parent := filepath.Dir(dir); ; parent = filepath.Dir(parent) {
		st, err := os.Stat(parent)
		if err != nil {
			return fmt.Errorf("look at the parents of %s: %w", dir, err)
		}
		own, mode := st.Sys().(*syscall.Stat_t), st.Mode().Perm()
		var enter bool
		switch {
		case int(own.Uid) == a.uid:
			enter = mode&0o100 != 0
		case int(own.Gid) == a.gid || os.Geteuid() != 0 && inGroup(int(own.Gid)):
			enter = mode&0o010 != 0
		default:
			enter = mode&0o001 != 0
		}
		if !enter {
			return fmt.Errorf("PostgreSQL would run as %s, who can't enter %s (%v): choose a data folder elsewhere, or let others enter that one (chmod o+x)",
				userName(a.uid), parent, st.Mode())
		}
		if parent == filepath.Dir(parent) {
			return nil
		}
	}
}

func inGroup(gid int) bool {
	groups, err := os.Getgroups()
	return err == nil && slices.Contains(groups, gid)
}

func userName(uid int) string {
	if uid == 0 {
		return "root without root's rights"
	}
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return "user " + u.Username
	}
	return "user " + strconv.Itoa(uid)
}
