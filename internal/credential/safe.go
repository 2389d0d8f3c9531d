package credential

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/stormpost/stormpost/internal/atomicfile"
)

const (
	safeKeySize = 32 // AES-256
	lockEvery   = 10 * time.Millisecond
)

// errNotKept is for what is not in a Safe as its asker has left it there: another
// key, another configuration, and a file that was changed look alike.
var errNotKept = errors.New("it was changed, or kept under another key or by another configuration")

// Safe is a folder in which credentials outlive the process, each in a file of
// its own, which is replaced whole. A file is encrypted and authenticated by
// AES-256-GCM (NIST SP 800-38D) with a random nonce of 96 bits. Whose it is, what
// for and by which source is authenticated along, so that no file can stand for
// another. Several processes may share one.
type Safe struct {
	dir  string
	aead cipher.AEAD
	log  *slog.Logger
}

// ParseKey reads the key of a Safe: 32 bytes, in any base64 or as they are. Its
// error shows nothing of it.
func ParseKey(text string) ([]byte, error) {
	if len(text) == safeKeySize {
		return []byte(text), nil
	}
	for _, e := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		if b, err := e.DecodeString(text); err == nil && len(b) == safeKeySize {
			return b, nil
		}
	}
	return nil, errors.New("want 32 random bytes in base64 (openssl rand -base64 32), or as they are if no line end is the last")
}

// OpenSafe makes the folder if there is none. One that anybody on the machine may
// read or change, or that can't be written to, is an error, as is a key that
// isn't one of ParseKey's. Nil for log discards.
func OpenSafe(dir string, key []byte, log *slog.Logger) (*Safe, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("%s can be read or changed by anyone on the machine (mode %04o): take that away (chmod 0700)", dir, info.Mode().Perm())
	}
	if own, ok := info.Sys().(*syscall.Stat_t); ok && int(own.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("%s belongs to user %d, and this process runs as %d: what it kept there that one could not read; run it as that user", dir, own.Uid, os.Geteuid())
	}
	f, err := os.CreateTemp(dir, "probe.*")
	if err != nil {
		return nil, err
	}
	_ = f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return nil, err
	}
	if len(key) != safeKeySize {
		return nil, fmt.Errorf("the key has %d bytes, want %d", len(key), safeKeySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	s := &Safe{dir: dir, log: log}
	if s.aead, err = cipher.NewGCMWithRandomNonce(block); err != nil {
		return nil, err
	}
	if log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s, s.checkKey()
}

// ErrOtherKey is in the error of OpenSafe for a folder that another key is of.
var ErrOtherKey = errors.New("it is not the key that the folder was made with: give that, or empty the folder, and what is kept is lost")

// checkKey makes sure that a wrong key is noticed before what is kept under the
// right one is given up for lost.
func (s *Safe) checkKey() error {
	mark := slot{safe: s, purpose: "safe"}
	var made string
	err := mark.load(&made)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return mark.save("stormpost")
	case errors.Is(err, errNotKept):
		return ErrOtherKey
	}
	return err
}

// String is the folder.
func (s *Safe) String() string { return s.dir }

// GoString is String, so that %#v shows no key.
func (s *Safe) GoString() string { return s.dir }

// slot is the place of one thing in a Safe. An error of its methods holds no
// secret.
type slot struct {
	safe    *Safe
	name    string // of the credential
	purpose string // a word
	source  string // that it is from, or for: another one's is not found
}

func (p slot) path() string {
	return filepath.Join(p.safe.dir, url.PathEscape(p.name)+"."+p.purpose)
}

func (p slot) additional() []byte {
	return fmt.Appendf(nil, "stormpost safe 1\n%q\n%q\n%q", p.purpose, p.name, p.source)
}

// save replaces what the slot holds by v, as JSON. When it returns nil, that is
// on disk.
func (p slot) save(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	b = p.safe.aead.Seal(nil, nil, b, p.additional())
	if len(b) > maxFile {
		return errors.New("it is too large to be kept")
	}
	return atomicfile.Write(p.path(), b)
}

// load reads what the slot holds. It is fs.ErrNotExist if that is nothing.
func (p slot) load(v any) error {
	// Its mode doesn't matter: it is encrypted.
	b, err := FileRules{WorldReadable: true}.Read(p.path())
	if err != nil {
		return err
	}
	if b, err = p.safe.aead.Open(nil, nil, b, p.additional()); err != nil {
		return errNotKept
	}
	if json.Unmarshal(b, v) != nil {
		return errors.New("it can't be read")
	}
	return nil
}

// lock keeps other processes, and other users of the slot in this one, from
// locking it until unlock is called or the process ends, however it does.
func (p slot) lock(ctx context.Context) (unlock func(), err error) {
	f, err := os.OpenFile(p.path()+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	// flock can't be given a deadline, hence the polling.
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil // which unlocks it
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		timer := time.NewTimer(lockEvery)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			_ = f.Close()
			return nil, fmt.Errorf("lock %s, which another process holds: %w", f.Name(), ctx.Err())
		}
	}
}
