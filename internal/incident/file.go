package incident

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/stormpost/stormpost/internal/atomicfile"
)

const (
	fileVersion = 1
	fileLimit   = 1 << 20 // bytes; 200 incidents are some 200 KiB
)

type saved struct {
	Version   int        `json:"version"`
	Incidents []Incident `json:"incidents"`
}

// load reads the file. Incidents of a kind that is not known any more are left
// out: nothing would ever resolve them.
func load(path string) ([]Incident, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, fileLimit+1))
	if err != nil {
		return nil, err
	}
	if len(b) > fileLimit {
		return nil, fmt.Errorf("over %d bytes", fileLimit)
	}
	var s saved
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, err
	}
	if s.Version != fileVersion {
		return nil, fmt.Errorf("version is %d, want %d", s.Version, fileVersion)
	}
	var known []Incident
	for _, i := range s.Incidents {
		if _, ok := kinds[i.Kind]; ok && i.ID != "" && kindOf(i.Cause) == i.Kind {
			known = append(known, i)
		}
	}
	return known, nil
}

// store replaces the file: after a crash there is the old or the new one.
func store(path string, all []Incident) error {
	b, err := json.Marshal(saved{fileVersion, all})
	if err != nil {
		return err
	}
	return atomicfile.Write(path, b)
}
