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
)

// A node that has been silent for nodeSilent, while a request waits, or has failed
// within nodeFailed, comes after all others.
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

// leaders is what is known of each topic. The transport answers from what it asked
// Kafka for within the last second.
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
	nodes := p.order(topics[batch[0].topic].leads, topics, now)
	var requests []*request
	for _, c := range batch {
		at, partitions := topics[c.topic].at(nodes)
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
				n.heard = now
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

// at is the first of nodes that leads any partition, and which.
func (t *topic) at(nodes []int32) (at int32, partitions []int32) {
	for _, at = range nodes {
		for _, l := range t.leads {
			if l.node == at {
				partitions = append(partitions, l.partition)
			}
		}
		if len(partitions) > 0 {
			break
		}
	}
	return at, partitions
}

// order is all nodes that lead something. The first is whose turn it is by the
// partitions of one topic, unless it is in trouble. The caller holds mu.
func (p *producer) order(turns []lead, topics map[string]*topic, now time.Time) []int32 {
	var nodes []int32
	for _, t := range topics {
		for _, l := range t.leads {
			nodes = append(nodes, l.node)
		}
	}
	slices.Sort(nodes)
	nodes = slices.Compact(nodes)
	if len(turns) > 0 {
		p.turn++
		i := slices.Index(nodes, turns[p.turn%len(turns)].node)
		nodes = slices.Concat(nodes[i:], nodes[:i])
	}
	for _, n := range nodes {
		if p.nodes[n] == nil {
			p.nodes[n] = &node{}
		}
	}
	slices.SortStableFunc(nodes, func(a, b int32) int { return cmp.Compare(p.nodes[a].trouble(now), p.nodes[b].trouble(now)) })
	return nodes
}

// trouble is 0 with none.
func (n *node) trouble(now time.Time) int {
	switch {
	case n.open > 0 && now.Sub(n.heard) > nodeSilent:
		return 2
	case now.Sub(n.failed) < nodeFailed:
		return 1
	}
	return 0
}

// heard notes how a request ended. That a record is too large is not the node's fault.
func (p *producer) heard(r *request, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.nodes[r.node]
	n.open--
	answered := false
	for _, part := range r.parts {
		switch {
		case part.err == nil, errors.Is(part.err, kafka.MessageSizeTooLarge):
			answered = true
		default:
			n.failed = now
		}
	}
	if answered {
		n.heard = now
	}
}

// node is what is known of one.
type node struct {
	open   int       // requests that are waited for
	heard  time.Time // when it answered last, or got the first of these
	failed time.Time // when it did so last
}

// led is a topic and one of its nodes.
type led struct {
	topic string
	node  int32
}
