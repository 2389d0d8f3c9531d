package message

import (
	"errors"
	"time"
)

// MainCluster is the name of the Kafka cluster that lanes use unless they were
// moved: the one of the setting brokers.
const MainCluster = "main"

// ErrEvacuating is returned when another evacuation is under way.
var ErrEvacuating = errors.New("another evacuation is under way")

// Placement says which Kafka cluster a lane uses, since it was moved there.
type Placement struct {
	Lane      Lane
	Cluster   string
	At        time.Time
	By        string
	Automatic bool // moved because its cluster was judged gone
	// Mark is the lane's last position when it was moved: up to it is the backlog.
	Mark Position
	Rate int // messages of the backlog a second that workers feed themselves; 0: no bound
}

// Evacuation is one move of lanes to another cluster. It has ended when their
// backlogs have.
type Evacuation struct {
	ID      int64
	Cluster string // to which
	By      string
	At      time.Time
}

// ClusterSeen counts the processes that told lately how they see a cluster.
type ClusterSeen struct{ Well, Away int }
