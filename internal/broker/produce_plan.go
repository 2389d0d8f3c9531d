package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/metadata"
	"github.com/segmentio/kafka-go/protocol/produce"
)

// A node that has been silent for nodeSilent, while a request waits, comes after
// others. So does one that has failed, but for one request each nodeFailed that tries
// whether it is mended, and for that long a topic's partitions that it failed with.
const (
	nodeSilent = 200 * time.Millisecond
	nodeFailed = 5 * time.Second
)

// topic is who leads what of it, by partition.
type topic struct {
	leads []lead
	err   error // why there are none
}

type lead struct{ partition, node int32 }

// leaders is what is known of each topic. The transport answers from what it heard
// last: it asks every second.
func (p *producer) leaders(ctx context.Context, batch []*parcel) (map[string]*topic, error) {
	topics := make(map[string]*topic)
	for _, c := range batch {
		topics[c.topic] = &topic{err: kafka.LeaderNotAvailable}
	}
	answer, err := p.trans.RoundTrip(ctx, p.addr, &metadata.Request{TopicNames: slices.Sorted(maps.Keys(topics))})
	if err != nil {
		return nil, err
	}
	meta, ok := answer.(*metadata.Response)
	if !ok {
		return nil, fmt.Errorf("want metadata of the cluster, not %T", answer)
	}
	there := make(map[int32]bool)
	for _, b := range meta.Brokers {
		there[b.NodeID] = true
	}
	for _, t := range meta.Topics {
		to := topics[t.Name]
		if to == nil {
			continue
		}
		if t.ErrorCode != 0 {
			to.err = kafka.Error(t.ErrorCode)
		}
		for _, part := range t.Partitions {
			if there[part.LeaderID] {
				to.leads = append(to.leads, lead{part.PartitionIndex, part.LeaderID})
			}
		}
		slices.SortFunc(to.leads, func(a, b lead) int { return cmp.Compare(a.partition, b.partition) })
	}
	return topics, nil
}

// request is what goes to one node at once.
type request struct {
	node  int32
	parts map[string]*part // by topic
}

// part goes to one partition.
type part struct {
	partition int32
	parcels   []*parcel
	size      int
	err       error
}

// takes says whether c has room: Kafka bounds what goes to a partition at once.
func (r *request) takes(c *parcel) bool {
	was := r.parts[c.topic]
	return was == nil || was.size+c.size <= maxBatch
}

// plan makes requests of a batch, each to the first node that leads a partition of
// its topics. What has no leader is answered.
func (p *producer) plan(batch []*parcel, topics map[string]*topic, now time.Time) []*request {
	p.mu.Lock()
	defer p.mu.Unlock()
	nodes := p.order(batch, topics, now)
	var requests []*request
	for _, c := range batch {
		at, partitions := p.at(c.topic, topics[c.topic].leads, nodes, now)
		if len(partitions) == 0 {
			c.done <- topics[c.topic].err
			continue
		}
		i := slices.IndexFunc(requests, func(r *request) bool { return r.node == at && r.takes(c) })
		if i < 0 {
			i = len(requests)
			requests = append(requests, &request{node: at, parts: make(map[string]*part)})
			n := p.nodes[at]
			if n.open++; n.open == 1 {
				n.since = now
			}
		}
		to := requests[i].parts[c.topic]
		if to == nil {
			turn := led{c.topic, at}
			p.turns[turn]++
			to = &part{partition: partitions[p.turns[turn]%len(partitions)]}
			requests[i].parts[c.topic] = to
		}
		to.parcels, to.size = append(to.parcels, c), to.size+c.size
	}
	return requests
}

// at is the first of nodes that leads any of a topic's partitions, and which: one
// that hasn't failed with them, if there is one.
func (p *producer) at(name string, leads []lead, nodes []int32, now time.Time) (at int32, partitions []int32) {
	for _, n := range nodes {
		var its []int32
		for _, l := range leads {
			if l.node == n {
				its = append(its, l.partition)
			}
		}
		if good := now.Sub(p.failed[led{name, n}]) >= nodeFailed; len(its) > 0 && (good || len(partitions) == 0) {
			at, partitions = n, its
			if good {
				break
			}
		}
	}
	return at, partitions
}

// order is all nodes that lead something. The first is whose turn it is by the
// partitions of the first topic that has some, unless it is in trouble. The caller
// holds mu.
func (p *producer) order(batch []*parcel, topics map[string]*topic, now time.Time) []int32 {
	var nodes []int32
	for _, t := range topics {
		for _, l := range t.leads {
			nodes = append(nodes, l.node)
		}
	}
	slices.Sort(nodes)
	nodes = slices.Compact(nodes)
	if i := slices.IndexFunc(batch, func(c *parcel) bool { return len(topics[c.topic].leads) > 0 }); i >= 0 {
		name := batch[i].topic
		leads, turn := topics[name].leads, led{name, -1}
		p.turns[turn]++
		first := slices.Index(nodes, leads[p.turns[turn]%len(leads)].node)
		nodes = slices.Concat(nodes[first:], nodes[:first])
	}
	for _, n := range nodes {
		if p.nodes[n] == nil {
			p.nodes[n] = &node{}
		}
	}
	slices.SortStableFunc(nodes, func(a, b int32) int { return cmp.Compare(p.nodes[a].trouble(now), p.nodes[b].trouble(now)) })
	return nodes
}

// trouble is how much of it a node is in.
func (n *node) trouble(now time.Time) int {
	heard := n.since
	if n.answered.After(heard) {
		heard = n.answered
	}
	switch {
	case n.failed.After(n.answered) && (n.open > 0 || now.Sub(n.failed) < nodeFailed):
		return 3
	case n.open > 0 && now.Sub(heard) > nodeSilent:
		return 2
	case n.open > 1: // so a node that begins to hang gets two requests
		return 1
	}
	return 0
}

// ended notes how a request ended. That a record is too large is nobody's fault, and
// neither is that the leaders have changed before it was sent.
func (p *producer) ended(r *request, failed error, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.nodes[r.node]
	n.open--
	unsent := new(produce.Error)
	switch {
	case errors.As(failed, &unsent):
	case failed != nil:
		n.failed = now
	default:
		n.answered = now
		for name, part := range r.parts {
			if part.err == nil {
				delete(p.failed, led{name, r.node})
			} else if !errors.Is(part.err, kafka.MessageSizeTooLarge) {
				p.failed[led{name, r.node}] = now
			}
		}
	}
}

// node is what is known of one.
type node struct {
	open     int       // requests that are waited for
	since    time.Time // when the first of them began, of those without a break
	answered time.Time // last
	failed   time.Time // last
}

// led is a topic and one of its nodes.
type led struct {
	topic string
	node  int32
}
