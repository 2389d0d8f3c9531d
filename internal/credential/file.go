package credential

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	maxFile = 1 << 20
	// pollEvery is how often a file is read. A change of a mounted volume is a
	// swapped symlink, which only following the path anew finds out; and it is
	// cheaper than to tell kinds of file systems apart.
	pollEvery = time.Second
	// settle is how long a file's content must have stayed the same before it is
	// believed, since it may be half written.
	settle = 100 * time.Millisecond
)

// FileRules say which files may hold secrets.
type FileRules struct {
	Root          string // the folder that they must be below, also when symlinks are followed; empty: any
	WorldReadable bool   // files that anyone on the machine may read are taken, too
}

// Read reads a secret's file: a regular one of at most 1 MiB that isn't empty,
// and within the rules. Its errors name the path and the reason.
func (r FileRules) Read(path string) ([]byte, error) {
	f, err := r.open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", path)
	case !r.WorldReadable && info.Mode().Perm()&0o007 != 0:
		return nil, fmt.Errorf("%s can be read or changed by anyone on the machine (mode %04o): "+
			"take that away (chmod o=), or set secrets.world_readable", path, info.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", path, errors.Unwrap(err))
	case len(b) > maxFile:
		return nil, fmt.Errorf("%s is larger than 1 MiB", path)
	case len(b) == 0:
		return nil, fmt.Errorf("%s is empty", path)
	}
	return b, nil
}

// open never waits for the other end of a pipe.
func (r FileRules) open(path string) (*os.File, error) {
	const flags = os.O_RDONLY | syscall.O_NONBLOCK
	if r.Root == "" {
		return os.OpenFile(path, flags, 0)
	}
	outside := fmt.Errorf("%s is outside of secrets.root, %s", path, r.Root)
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	base, err := filepath.Abs(r.Root)
	if err != nil {
		return nil, err
	}
	rel, err := filepath.Rel(base, abs)
	if err != nil || !filepath.IsLocal(rel) {
		return nil, outside
	}
	root, err := os.OpenRoot(base)
	if err != nil {
		return nil, fmt.Errorf("secrets.root: %w", err)
	}
	defer root.Close()
	f, err := root.OpenFile(rel, flags, 0)
	var p *fs.PathError
	switch {
	case err == nil:
		return f, nil
	case errors.As(err, &p) && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)):
		return nil, fmt.Errorf("open %s: %w", path, p.Err)
	}
	return nil, fmt.Errorf("%w (%w)", outside, err)
}

// File is a Source that reads a file again and again: a password, a token with
// its end (see below) or a key. A deploy may replace it at any time, by writing,
// renaming or swapping symlinks, as Kubernetes does.
//
// A JWT (RFC 7519) tells itself when it was issued and ends. So does a JSON
// object with access_token, by expires_at or expiry, and issued_at: RFC 3339 or
// Unix seconds. Of all else nobody knows when it ends.
type File struct {
	Path  string
	Rules FileRules
	Now   func() time.Time

	last Secret // what was believed; Fetch's alone
}

var _ Source = (*File)(nil)

func (f *File) String() string { return "file " + f.Path }

// Fetch reads the file, again until it reads the same twice if it has changed.
func (f *File) Fetch(ctx context.Context) (Material, error) {
	b, err := f.Rules.Read(f.Path)
	for range 10 {
		if err != nil {
			return Material{}, err
		}
		if f.last == "" || Secret(b) == f.last {
			break
		}
		seen := string(b)
		timer := time.NewTimer(settle)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return Material{}, ctx.Err()
		}
		if b, err = f.Rules.Read(f.Path); string(b) == seen {
			break
		}
	}
	if err != nil {
		return Material{}, err
	}
	f.last = Secret(b)
	m := readMaterial(f.last.Reveal())
	if m.Value == "" {
		return Material{}, fmt.Errorf("%s holds nothing but line ends", f.Path)
	}
	now := time.Now
	if f.Now != nil {
		now = f.Now
	}
	m.Next = now().Add(pollEvery)
	return m, nil
}
