package devstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/stormpost/stormpost/internal/atomicfile"
)

// backupLimit bounds a base backup.
const backupLimit = 5 * time.Minute

func (p *Postgres) backup() string { return filepath.Join(p.dir, "backup") }

// Backup takes a base backup of the running server with pg_basebackup, in place
// of the one before.
func (p *Postgres) Backup(ctx context.Context) error {
	dsn := p.dsn("postgres")
	if err := os.RemoveAll(p.backup()); err != nil {
		return fmt.Errorf("clear the last backup: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, backupLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(p.bin, "pg_basebackup"), "-D", p.backup(), "-d", dsn, "--checkpoint=fast", "--wal-method=stream")
	cmd.Env = pgEnv()
	cmd.Dir = p.dir
	cmd.SysProcAttr = p.account.attr()
	cmd.SysProcAttr.Setpgid = true
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("pg_basebackup: %w: %s", err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

// Restore stops the server, puts the last backup in place of its data and starts
// it again, on its port. What was committed since the backup is gone.
func (p *Postgres) Restore(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lock.f == nil {
		return errors.New("restore PostgreSQL: it was stopped for good")
	}
	if _, err := os.Stat(filepath.Join(p.backup(), "PG_VERSION")); err != nil {
		return fmt.Errorf("restore PostgreSQL: there is no backup: %w", err)
	}
	if err := p.end(ctx, p.srv); err != nil {
		return fmt.Errorf("restore PostgreSQL: %w", err)
	}
	if err := os.RemoveAll(p.data()); err != nil {
		return fmt.Errorf("restore PostgreSQL: %w", err)
	}
	if err := os.Rename(p.backup(), p.data()); err != nil {
		return fmt.Errorf("restore PostgreSQL: %w", err)
	}
	if err := atomicfile.SyncDir(p.dir); err != nil {
		return fmt.Errorf("restore PostgreSQL: %w", err)
	}
	if err := p.start(ctx); err != nil {
		return fmt.Errorf("restore PostgreSQL: %w", err)
	}
	return nil
}
