package drill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Drill is one outage that can be re-enacted.
type Drill struct {
	Name   string
	Outage string // the real one
	About  string // what is done, and what must hold
	Needs  Needs
	Shape  Shape
	// Run does the harm, while the load flows, and heals it. An error means
	// that the drill could not be carried out; a broken promise is told to
	// Stage.Broke.
	Run func(ctx context.Context, s *Stage) error
}

// Shape is how a drill differs from the others.
type Shape struct {
	// Mixed has the load hold what else applications do: supersede keys, lives of
	// seconds, and clients that submit again under the same key before the end.
	Mixed bool
	Rate  int // messages a second, if nobody says another; 0: 500
	// Keyless has every fifth message submitted without an idempotency key, by a
	// tenant whose repeats are suppressed: the harm must open an incident.
	Keyless bool
	// Calm says that no process is killed and that providers answer: then nothing
	// may end in doubt.
	Calm bool
	// Reachable says that no process which accepts is harmed: each request has an answer.
	Reachable bool
	// Linked puts a link between the processes and each store.
	Linked bool
	// Whole says that no store is lost for good: at the end the program must know
	// of all that it ever accepted.
	Whole bool
	// Faults lists the kinds that Options.Faults may choose from.
	Faults []string
	// Prepare is called before the ledger's tables are made.
	Prepare func(ctx context.Context, s *Stage) error
}

// Needs are stores that the drill must have started itself.
type Needs struct{ Postgres, Kafka bool }

// All lists the drills.
func All() []Drill {
	return []Drill{expiredToken, lostNumbering, corruptCluster, frontDoor, rolledBackLedger, torture}
}

// Find is the drill of a name.
func Find(name string) (Drill, error) {
	var names []string
	for _, d := range All() {
		if d.Name == name {
			return d, nil
		}
		names = append(names, d.Name)
	}
	return Drill{}, fmt.Errorf("there is no drill %q: want %s", name, strings.Join(names, ", "))
}

// Options say how to run a drill. Binary is required.
type Options struct {
	Binary   string        // this program, for its processes
	Seed     uint64        // of the load and of all chance
	Messages int           // at least; the load goes on until the harm is over
	Rate     int           // messages a second, once grown to; 0: Shape.Rate
	DSN      string        // a PostgreSQL, for a database that is made and removed; empty: an own server
	Brokers  []string      // a Kafka; empty: an own cluster of three nodes
	Keep     bool          // keep the folder with the files and logs
	Minutes  float64       // for how long faults are drawn, where they are
	Faults   []string      // only these kinds are; empty: all
	Settle   time.Duration // without a delivery, after which nothing more is expected; 0: 45 s
	Env      []string      // of the processes, beside the drill's own
	plan     []fault       // instead of drawn ones; a test's
	Progress io.Writer     // the timeline while it runs
}

// MostMessages bounds Options.Messages.
const MostMessages = 10_000_000

// Validate names the option that is wrong, by its flag.
func (o *Options) Validate(d Drill) error {
	switch {
	case o.Messages < 100 || o.Messages > MostMessages:
		return fmt.Errorf("--messages: want 100 to %d, not %d", MostMessages, o.Messages)
	case o.Rate < 0 || o.Rate > 20_000:
		return fmt.Errorf("--rate: want 1 to 20000, not %d", o.Rate)
	case o.DSN != "" && !isURL(o.DSN):
		return errors.New("--dsn: want postgres://USER:PASSWORD@HOST/DATABASE")
	case d.Needs.Postgres && o.DSN != "":
		return fmt.Errorf("--dsn: %s harms PostgreSQL, and must start its own", d.Name)
	case d.Needs.Kafka && len(o.Brokers) > 0:
		return fmt.Errorf("--brokers: %s harms Kafka, and must start its own", d.Name)
	case d.Shape.Faults != nil && !(o.Minutes > 0 && o.Minutes <= 1440):
		return fmt.Errorf("--minutes: want more than 0 and at most 1440, not %g", o.Minutes)
	}
	for _, f := range o.Faults {
		if !slices.Contains(d.Shape.Faults, f) {
			if d.Shape.Faults == nil {
				return fmt.Errorf("--faults: %s draws none", d.Name)
			}
			return fmt.Errorf("--faults: there is no kind %q: want %s", f, strings.Join(d.Shape.Faults, ", "))
		}
	}
	return nil
}

func isURL(dsn string) bool {
	u, err := url.Parse(dsn)
	return err == nil && u.Host != ""
}

// Result is how a drill went.
type Result struct {
	Drill      string         `json:"drill"`
	Seed       uint64         `json:"seed"`
	Pass       bool           `json:"pass"`
	Accepted   int            `json:"accepted"`
	Sent       int            `json:"sent"`
	InDoubt    int            `json:"in_doubt"`
	Expired    int            `json:"expired"`
	Superseded int            `json:"superseded"`
	Lost       int            `json:"lost"`
	Doubled    int            `json:"doubled"`
	Gaps       int            `json:"gaps"`
	Stale      int            `json:"stale"`
	Refused503 int            `json:"refused_503"` // seconds in which a request was answered 503
	NoticeS    *float64       `json:"notice_s"`    // the longest from a harm's bite until it was noticed; null: one was not, or had not to be
	RecoverS   *float64       `json:"recover_s"`   // from when the harm was over until nothing was late; null: never
	Evidence   map[string]any `json:"evidence"`
	Broken     []string       `json:"broken"` // each promise that was broken
	Timeline   []Tick         `json:"timeline"`

	Bit bool `json:"-"` // there is evidence that the harm was done
}

// Tick is a moment of the drill.
type Tick struct {
	T         float64 `json:"t_s"`
	Event     string  `json:"event,omitempty"`
	Offered   int     `json:"offered"`
	Accepted  int     `json:"accepted"`
	Sent      int     `json:"sent"`
	Backlog   int     `json:"backlog"` // accepted and not with a provider
	Unhappy   int     `json:"unanswered"`
	Postgres  bool    `json:"postgres"`
	Kafka     int     `json:"kafka"`     // nodes that take connections
	Incidents *int    `json:"incidents"` // causes that are open; null: the program doesn't tell
}

// String is the line of the timeline.
func (t Tick) String() string {
	pg, inc := "up", ""
	if !t.Postgres {
		pg = "DOWN"
	}
	if t.Incidents != nil {
		inc = fmt.Sprint(*t.Incidents)
	}
	line := fmt.Sprintf("%6.1fs  offered %7d  accepted %7d  sent %7d  backlog %6d  unanswered %6d  postgres %-4s  kafka %d  incidents %s",
		t.T, t.Offered, t.Accepted, t.Sent, t.Backlog, t.Unhappy, pg, t.Kafka, inc)
	if t.Event != "" {
		return fmt.Sprintf("%6.1fs  -- %s", t.T, t.Event)
	}
	return strings.TrimRight(line, " ")
}

func seconds(d time.Duration) *float64 { return new(float64(d.Milliseconds()) / 1000) }
