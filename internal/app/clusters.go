package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/internal/broker"
	"github.com/stormpost/stormpost/internal/config"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/watch"
	"github.com/stormpost/stormpost/recovery"
)

// clusters are all Kafka clusters that are configured, main first. Lanes are
// published to and read from the one where they are placed; journals are read
// from all of them.
type clusters struct {
	all    []*cluster
	placed *placements
}

var (
	_ ingest.Publisher   = (*clusters)(nil)
	_ recovery.Publisher = (*clusters)(nil)
	_ ingest.Journal     = (*clusters)(nil)
)

// clusterBrokers are the brokers of each configured cluster.
func clusterBrokers(cfg config.Config) (names []string, brokers map[string][]string) {
	names, brokers = []string{message.MainCluster}, map[string][]string{message.MainCluster: cfg.Brokers}
	for name, list := range cfg.Clusters {
		names = append(names, name)
		brokers[name] = strings.Fields(list)
	}
	slices.Sort(names[1:])
	return names, brokers
}

// named is the cluster of a name, or nil.
func (cs *clusters) named(name string) *cluster {
	for _, c := range cs.all {
		if c.name == name {
			return c
		}
	}
	return nil
}

// of is the cluster that a lane uses; nil if this process doesn't know it.
func (cs *clusters) of(l message.Lane) *cluster {
	if len(cs.all) == 1 && cs.placed.empty() {
		return cs.all[0]
	}
	return cs.named(cs.placed.where(l))
}

// away says that nothing comes from the lane's cluster.
func (cs *clusters) away(l message.Lane) bool {
	c := cs.of(l)
	return c == nil || c.isAway()
}

// Publish implements ingest.Publisher. What has no cluster is left to the lane's
// cursor.
func (cs *clusters) Publish(items []message.Item) {
	for len(items) > 0 {
		lane, n := items[0].Position.Lane(), 1
		for n < len(items) && items[n].Position.Lane() == lane {
			n++
		}
		if c := cs.of(lane); c != nil {
			c.publisher.Publish(items[:n])
		}
		items = items[n:]
	}
}

// Append implements ingest.Journal: into the journal of the lane's cluster, or,
// since all of them are read, of another one that is well. An append to one that
// seems well and isn't costs the half of the time that there is.
func (cs *clusters) Append(ctx context.Context, j message.Journaled) error {
	order := slices.Clone(cs.all)
	at := cs.of(j.Lane)
	rank := func(c *cluster) (n int) {
		if !c.canJournal() {
			n = 2
		}
		if c != at {
			n++
		}
		return n
	}
	slices.SortStableFunc(order, func(a, b *cluster) int { return rank(a) - rank(b) })
	var errs []error
	for i, c := range order {
		if i > 0 && !c.canJournal() {
			break
		}
		err := func() error {
			if deadline, ok := ctx.Deadline(); ok && i+1 < len(order) && order[i+1].canJournal() {
				half, cancel := context.WithTimeout(ctx, time.Until(deadline)/2)
				defer cancel()
				return c.journal.Append(half, j)
			}
			return c.journal.Append(ctx, j)
		}()
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Find implements ingest.Journal: no journal is known not to hold it until all
// have been read.
func (cs *clusters) Find(id message.ID) (*message.Journaled, bool) {
	known := true
	for _, c := range cs.all {
		j, k := c.tail.Find(id)
		if j != nil {
			return j, k
		}
		known = known && k
	}
	return nil, known
}

// Under implements httpapi.Journal.
func (cs *clusters) Under(key message.KeyHash) (all []*message.Journaled, known bool) {
	known = true
	for _, c := range cs.all {
		some, k := c.tail.Under(key)
		all, known = append(all, some...), known && k
	}
	return all, known || len(all) > 0
}

// Lanes implements httpapi.Journal.
func (cs *clusters) Lanes() (messages map[message.Lane]int64, known bool) {
	messages, known = make(map[message.Lane]int64), true
	for _, c := range cs.all {
		some, _, k := c.tail.Lanes()
		for lane, n := range some {
			messages[lane] += n
		}
		known = known && k
	}
	return messages, known
}

// errUnread is of a cluster whose journal may hold what nobody here has read.
var errUnread = errors.New("a Kafka cluster is away")

// Current implements ingest.Journal and httpapi.Journal. A cluster that is away, for
// this process, may have kept what another process was given; nobody waits for it.
func (cs *clusters) Current(ctx context.Context, at time.Time) (err error) {
	for _, c := range cs.all {
		switch {
		case c.bare.Load():
		case c.isAway() && c.tail.AsOf().Before(at):
			err = errUnread
		default:
			err = cmp.Or(c.tail.Current(ctx, at), err)
		}
	}
	return err
}

// Note tells a step of an attempt to the cluster that its lane uses.
func (cs *clusters) Note(s message.Step) {
	c := cs.of(s.Position.Lane())
	if c == nil {
		c = cs.all[0]
	}
	c.trail.Note(s)
}

// endTrails writes what is left of the trails, for a moment.
func (cs *clusters) endTrails() {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	var all sync.WaitGroup
	for _, c := range cs.all {
		if c.trail == nil {
			continue
		}
		all.Go(func() {
			if err := c.trail.Close(ctx); err != nil {
				c.log.Warn("the trail of attempts was cut short", "error", err)
			}
		})
	}
	all.Wait()
}

// canJournal says whether some journal can take something.
func (cs *clusters) canJournal() bool { return slices.ContainsFunc(cs.all, (*cluster).canJournal) }

// backlog is JournalBacklog of all clusters that answer.
func (cs *clusters) backlog(ctx context.Context) (left, done map[message.Class]int64, err error) {
	left, done = make(map[message.Class]int64), make(map[message.Class]int64)
	var errs []error
	for _, c := range cs.all {
		if len(cs.all) > 1 && c.isAway() {
			errs = append(errs, fmt.Errorf("cluster %s is away", c.name))
			continue
		}
		began := time.Now()
		l, d, err := c.broker.JournalBacklog(ctx)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c.left.Store(&journalLeft{l, began})
		for class := range l {
			left[class] += l[class]
			done[class] += d[class]
		}
	}
	if len(errs) == len(cs.all) {
		return nil, nil, errors.Join(errs...)
	}
	return left, done, nil
}

// health is what is known of each.
func (cs *clusters) health() (all []watch.Kafka) {
	for _, c := range cs.all {
		k := c.health()
		if len(cs.all) > 1 {
			k.Name = c.name
		}
		for _, l := range message.Lanes() {
			k.Used = k.Used || cs.of(l) == c
		}
		all = append(all, k)
	}
	return all
}

// assign has consumers read the lanes of their clusters.
func (cs *clusters) assign() {
	for _, l := range message.Lanes() {
		if cs.of(l) == nil {
			cs.placed.log.Warn("a lane uses a Kafka cluster that isn't configured here; the ledger feeds it", "lane", l.String(), "cluster", cs.placed.where(l))
		}
	}
	for _, c := range cs.all {
		if c.consumer != nil {
			c.consumer.Assign(cs.lanesOf(c))
		}
	}
}

func (cs *clusters) lanesOf(c *cluster) (lanes []message.Lane) {
	for _, l := range message.Lanes() {
		if cs.of(l) == c {
			lanes = append(lanes, l)
		}
	}
	return lanes
}

// clusterUse is what a process has of one cluster, by its roles.
type clusterUse struct {
	publisher *broker.Publisher
	tail      *broker.Tail // what the journals hold; the API's
	journal   *broker.Journal
	consumer  *broker.Consumer
	journals  *broker.JournalConsumer
	trail     *broker.Trail // of attempts
}

// use makes what the roles need.
func (c *cluster) use(api, worker, recovery bool) (err error) {
	if api || recovery {
		if c.publisher, err = c.broker.NewPublisher(); err != nil {
			return err
		}
	}
	if api || worker {
		if c.trail, err = c.broker.NewTrail(); err != nil {
			return err
		}
	}
	if api {
		c.tail = c.broker.NewTail()
		if c.journal, err = c.broker.NewJournal(c.tail); err != nil {
			return err
		}
	}
	if recovery {
		if c.journals, err = c.broker.NewJournalConsumer(); err != nil {
			return err
		}
	}
	if worker {
		c.consumer, err = c.broker.NewConsumer()
	}
	return err
}

// readAnew has all begin anew that read from it: it is another cluster than it
// was.
func (c *cluster) readAnew() {
	if c.consumer != nil {
		c.consumer.Rejoin()
	}
	if c.journals != nil {
		c.journals.Rejoin()
	}
	if c.tail != nil {
		c.tail.Restart()
	}
}

// source names a record: of another cluster than main with its name.
func (c *cluster) source(of string) string {
	if c.name == message.MainCluster {
		return of
	}
	return c.name + ":" + of
}
