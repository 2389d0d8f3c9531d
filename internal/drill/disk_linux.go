package drill

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	diskSize  = 8 << 30   // bytes, as long as it isn't full; of memory, as it fills
	diskSpare = 256 << 10 // that are left of a full one
	diskFull  = "53100"   // SQLSTATE disk_full
)

func (s *Stage) disk() string { return filepath.Join(s.dir, "disk") }

// prepareTorture puts the ledger's tables, which are not made yet, on a disk that
// can be filled: a tablespace on a tmpfs. PostgreSQL's log stays elsewhere, as
// without it there would be no server.
func prepareTorture(ctx context.Context, s *Stage) error {
	if !s.wants("disk") || s.Postgres == nil || os.Geteuid() != 0 {
		return nil
	}
	own, err := os.Stat(filepath.Join(s.dir, "postgres", "data"))
	if err != nil {
		return err
	}
	owner := own.Sys().(*syscall.Stat_t)
	if err := os.Mkdir(s.disk(), 0o700); err != nil {
		return err
	}
	if err := syscall.Mount("tmpfs", s.disk(), "tmpfs", 0, mountOptions(diskSize)); err != nil {
		s.say(fmt.Sprintf("no disk to fill: %v", err))
		return nil
	}
	// It goes last of all, when PostgreSQL has gone.
	s.closers = append([]func() error{func() error { return syscall.Unmount(s.disk(), syscall.MNT_DETACH) }}, s.closers...)
	data := filepath.Join(s.disk(), "tables")
	if err := errors.Join(os.Mkdir(data, 0o700), os.Chmod(s.disk(), 0o711), os.Chown(data, int(owner.Uid), int(owner.Gid))); err != nil {
		return err
	}
	admin, ledger, err := s.admin()
	if err != nil {
		return err
	}
	for _, sql := range []string{"create tablespace drill location '" + data + "'", "alter database " + ledger + " set tablespace drill"} {
		if err := s.execOn(ctx, admin, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	s.fillable = true
	return nil
}

func mountOptions(size int64) string { return fmt.Sprintf("size=%d,mode=0711", size) }

// resize sets what the disk has room for; 0: just what is on it.
func (s *Stage) resize(size int64) error {
	if size == 0 {
		var st syscall.Statfs_t
		if err := syscall.Statfs(s.disk(), &st); err != nil {
			return err
		}
		size = int64(st.Blocks-st.Bfree)*int64(st.Bsize) + diskSpare
	}
	return syscall.Mount("tmpfs", s.disk(), "tmpfs", syscall.MS_REMOUNT, mountOptions(size))
}

func (s *Stage) diskless() string {
	switch {
	case s.Postgres == nil:
		return "PostgreSQL was given, and is not the drill's to harm"
	case os.Geteuid() != 0:
		return "only root may mount one that can be filled"
	case !s.fillable:
		return "it could not be mounted"
	}
	return ""
}

func (s *Stage) harmDisk() deed {
	return deed{
		do: func(context.Context) error { return s.resize(0) },
		bit: func(ctx context.Context) bool {
			err := s.Exec(ctx, `create table drill_full as select repeat(md5(i::text), 200) from generate_series(1, 1000) i`)
			var pe *pgconn.PgError
			return errors.As(err, &pe) && pe.Code == diskFull
		},
		undo: func(context.Context) error { return s.resize(diskSize) },
	}
}
