package devstack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// CacheVariable names the environment variable for another DefaultCache.
const CacheVariable = "STORMPOST_CACHE"

// DefaultCache is the folder for what is fetched once: STORMPOST_CACHE, else
// stormpost in the user's cache folder.
func DefaultCache() (string, error) {
	if dir := os.Getenv(CacheVariable); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache folder (set %s): %w", CacheVariable, err)
	}
	return filepath.Join(dir, "stormpost"), nil
}

// cached is the folder of a name in the cache ("" is DefaultCache).
func cached(cache, name string) (string, error) {
	if cache == "" {
		var err error
		if cache, err = DefaultCache(); err != nil {
			return "", err
		}
	}
	cache, err := filepath.Abs(cache)
	if err != nil {
		return "", fmt.Errorf("find the cache folder: %w", err)
	}
	return filepath.Join(cache, name), nil
}

// fetchOnce has fetch make the folder, which becomes what part of its working
// folder holds by then. That is done under a lock, since several processes may
// want it at once, and it appears complete or not at all.
func fetchOnce(ctx context.Context, folder, part string, fetch func(work string) error) error {
	if there, err := folderThere(folder); there || err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(folder), 0o755); err != nil {
		return fmt.Errorf("make the cache folder: %w", err)
	}
	lock, err := waitLock(ctx, folder+".lock")
	if err != nil {
		return err
	}
	defer lock.release()
	if there, err := folderThere(folder); there || err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(folder), "fetching-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := fetch(work); err != nil {
		return err
	}
	return os.Rename(filepath.Join(work, part), folder)
}

func folderThere(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
