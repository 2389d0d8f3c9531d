package keyring

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/stormpost/stormpost/internal/atomicfile"
)

const (
	snapshotVersion = 1
	snapshotLimit   = 64 << 20 // bytes; some 200,000 keys
)

// snapshot is the file's shape. It holds no key's text.
type snapshot struct {
	Version int             `json:"version"`
	AsOf    time.Time       `json:"as_of"`
	Keys    json.RawMessage `json:"keys"`
}

// savedRecord writes a Record's hash as base64.
type savedRecord struct {
	Record
	Hash []byte
}

func encode(records []Record) ([]byte, error) {
	out := make([]savedRecord, len(records))
	for i, r := range records {
		out[i] = savedRecord{r, r.Hash[:]}
	}
	return json.Marshal(out)
}

func (s snapshot) records() ([]Record, error) {
	var in []savedRecord
	if err := json.Unmarshal(s.Keys, &in); err != nil {
		return nil, fmt.Errorf("decode keys: %w", err)
	}
	out := make([]Record, len(in))
	for i, r := range in {
		if len(r.Hash) != len(r.Record.Hash) {
			return nil, fmt.Errorf("decode keys: key %d has a hash of %d bytes", r.ID, len(r.Hash))
		}
		out[i] = r.Record
		out[i].Hash = [32]byte(r.Hash)
	}
	return out, nil
}

// load reads the snapshot. Whoever may write the file can make keys, so one
// that others than its owner may write is refused.
func load(path string) (snapshot, error) {
	var s snapshot
	f, err := os.Open(path)
	if err != nil {
		return s, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return s, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o022 != 0 {
		return s, fmt.Errorf("%s: mode is %v, want a file that its owner alone may write", path, info.Mode())
	}
	b, err := io.ReadAll(io.LimitReader(f, snapshotLimit+1))
	if err != nil {
		return s, err
	}
	if len(b) > snapshotLimit {
		return s, fmt.Errorf("%s: over %d bytes", path, snapshotLimit)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("%s: %w", path, err)
	}
	if s.Version != snapshotVersion {
		return s, fmt.Errorf("%s: version is %d, want %d", path, s.Version, snapshotVersion)
	}
	return s, nil
}

// store replaces the snapshot: after a crash there is the old or the new one.
func store(path string, s snapshot) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return atomicfile.Write(path, b)
}
