package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/metadata"
	"github.com/segmentio/kafka-go/protocol/produce"
)

const (
	// produceLinger is how long the first batch waits for those of other lanes, and
	// producePatience for as long as a request is under way: on a busy machine that
	// takes long, and then fewer and greater ones are what helps.
	produceLinger   = time.Millisecond
	producePatience = 15 * time.Millisecond
	// produceBytes bounds one request, at about most.
	produceBytes = 4 << 20
	// produceLimit is how long one request is waited for.
	produceLimit = 5 * time.Second
)

var errUnanswered = errors.New("Kafka's answer leaves the partition out")

// producer writes the lanes' batches: those that come together go in one request to
// one node, each to a partition of its topic that this node leads. kafka.Writer
// would make a request of each, and a request costs Kafka, and each of its
// replicas, more than its records do.
//
// The nodes take turns, and one that is still waited for comes after those that
// are not. It is safe for concurrent use.
type producer struct {
	addr  net.Addr
	trans kafka.RoundTripper
	in    chan *parcel
	over  chan struct{} // wakes run: fewer requests are under way
	busy  atomic.Int32  // requests under way
	life  context.Context
	end   context.CancelFunc
	wg    sync.WaitGroup

	mu    sync.Mutex
	turn  int
	open  map[int32]int  // requests at each node that are waited for
	turns map[string]int // of each topic's partitions
}

// parcel is records of one topic that go to one partition.
type parcel struct {
	topic   string
	records []protocol.Record
	size    int
	done    chan error // has room for the one answer
}

func newProducer(addr net.Addr, trans kafka.RoundTripper) *producer {
	p := &producer{addr: addr, trans: trans, in: make(chan *parcel), over: make(chan struct{}, 1), open: make(map[int32]int), turns: make(map[string]int)}
	p.life, p.end = context.WithCancel(context.Background())
	p.wg.Go(p.run)
	return p
}

// WriteMessages implements writer, for messages of one topic.
func (p *producer) WriteMessages(ctx context.Context, msgs ...kafka.Message) error {
	var parcels []*parcel
	each := make(kafka.WriteErrors, len(msgs))
	of := make([]*parcel, len(msgs))
	now := time.Now()
	for i := range msgs {
		m := &msgs[i]
		size := len(m.Key) + len(m.Value) + 64
		for _, h := range m.Headers {
			size += len(h.Key) + len(h.Value) + 8
		}
		if n := len(parcels); n == 0 || parcels[n-1].size+size > maxBatch {
			parcels = append(parcels, &parcel{topic: m.Topic, records: make([]protocol.Record, 0, len(msgs)-i), done: make(chan error, 1)})
		}
		to := parcels[len(parcels)-1]
		to.records = append(to.records, protocol.Record{Time: now, Key: protocol.NewBytes(m.Key), Value: protocol.NewBytes(m.Value), Headers: m.Headers})
		to.size += size
		of[i] = to
	}
	for _, c := range parcels {
		select {
		case p.in <- c:
		case <-ctx.Done():
			return ctx.Err()
		case <-p.life.Done():
			return errClosed
		}
	}
	errs := make(map[*parcel]error)
	for _, c := range parcels {
		select {
		case err := <-c.done:
			if err != nil {
				errs[c] = err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if len(errs) == 0 {
		return nil
	}
	for i := range each {
		each[i] = errs[of[i]]
	}
	return each
}

// run gathers what comes together.
func (p *producer) run() {
	for {
		var batch []*parcel
		select {
		case c := <-p.in:
			batch = append(batch, c)
		case <-p.life.Done():
			return
		}
		linger, patience := time.NewTimer(produceLinger), time.NewTimer(producePatience)
		lingered := false
		for size := batch[0].size; size < produceBytes && !(lingered && p.busy.Load() == 0); {
			select {
			case c := <-p.in:
				batch, size = append(batch, c), size+c.size
			case <-linger.C:
				lingered = true
			case <-p.over:
			case <-patience.C:
				size = produceBytes
			}
		}
		linger.Stop()
		patience.Stop()
		p.busy.Add(1)
		p.wg.Go(func() {
			p.ship(batch)
			p.busy.Add(-1)
			select {
			case p.over <- struct{}{}:
			default:
			}
		})
	}
}

// ship sends a batch, in as few requests as it can, and answers every parcel. How
// many of it run at once is bounded by who waits for the answers.
func (p *producer) ship(batch []*parcel) {
	ctx, cancel := context.WithTimeout(p.life, produceLimit)
	defer cancel()
	led, err := p.leaders(ctx, batch)
	if err != nil {
		for _, c := range batch {
			c.done <- err
		}
		return
	}
	var wg sync.WaitGroup
	for _, r := range p.plan(batch, led) {
		wg.Go(func() {
			p.send(ctx, r)
			p.mu.Lock()
			p.open[r.node]--
			p.mu.Unlock()
			for _, part := range r.parts {
				for _, c := range part.parcels {
					c.done <- part.err
				}
			}
		})
	}
	wg.Wait()
}

// leaders is, for each topic, which partitions each node leads. The transport
// answers from what it asked Kafka for within the last second.
func (p *producer) leaders(ctx context.Context, batch []*parcel) (map[string]map[int32][]int32, error) {
	led := make(map[string]map[int32][]int32)
	for _, c := range batch {
		led[c.topic] = make(map[int32][]int32)
	}
	answer, err := p.trans.RoundTrip(ctx, p.addr, &metadata.Request{TopicNames: slices.Sorted(maps.Keys(led))})
	if err != nil {
		return nil, err
	}
	meta, ok := answer.(*metadata.Response)
	if !ok {
		return nil, fmt.Errorf("want metadata of the cluster, not %T", answer)
	}
	for _, t := range meta.Topics {
		for _, part := range t.Partitions {
			if nodes := led[t.Name]; nodes != nil && part.LeaderID >= 0 {
				nodes[part.LeaderID] = append(nodes[part.LeaderID], part.PartitionIndex)
			}
		}
	}
	return led, nil
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
func (p *producer) plan(batch []*parcel, led map[string]map[int32][]int32) []*request {
	p.mu.Lock()
	defer p.mu.Unlock()
	nodes := p.order(led)
	var requests []*request
	for _, c := range batch {
		i := slices.IndexFunc(nodes, func(n int32) bool { return len(led[c.topic][n]) > 0 })
		if i < 0 {
			c.done <- kafka.LeaderNotAvailable
			continue
		}
		at := slices.IndexFunc(requests, func(r *request) bool { return r.node == nodes[i] && r.takes(c) })
		if at < 0 {
			at = len(requests)
			requests = append(requests, &request{node: nodes[i], parts: make(map[string]*part)})
			p.open[nodes[i]]++
		}
		to := requests[at].parts[c.topic]
		if to == nil {
			partitions := led[c.topic][nodes[i]]
			p.turns[c.topic]++
			to = &part{partition: partitions[p.turns[c.topic]%len(partitions)]}
			requests[at].parts[c.topic] = to
		}
		to.parcels, to.size = append(to.parcels, c), to.size+c.size
	}
	return requests
}

// order is all nodes that lead something: those that the fewest requests are waited
// for at, then by whose turn it is. The caller holds mu.
func (p *producer) order(led map[string]map[int32][]int32) []int32 {
	var nodes []int32
	for _, of := range led {
		nodes = slices.AppendSeq(nodes, maps.Keys(of))
	}
	slices.Sort(nodes)
	nodes = slices.Compact(nodes)
	if len(nodes) == 0 {
		return nil
	}
	p.turn++
	first := p.turn % len(nodes)
	nodes = slices.Concat(nodes[first:], nodes[:first])
	slices.SortStableFunc(nodes, func(a, b int32) int { return cmp.Compare(p.open[a], p.open[b]) })
	return nodes
}

// send notes at each part what came of it.
func (p *producer) send(ctx context.Context, r *request) {
	req := &produce.Request{Acks: int16(kafka.RequireAll), Timeout: int32(produceLimit / time.Millisecond)}
	for topic, part := range r.parts {
		var records []protocol.Record
		for _, c := range part.parcels {
			records = append(records, c.records...)
		}
		req.Topics = append(req.Topics, produce.RequestTopic{Topic: topic, Partitions: []produce.RequestPartition{{
			Partition: part.partition, RecordSet: protocol.RecordSet{Records: protocol.NewRecordReader(records...)},
		}}})
	}
	answer, failed := p.trans.RoundTrip(ctx, p.addr, req)
	for _, part := range r.parts {
		part.err = cmp.Or(failed, errUnanswered)
	}
	resp, ok := answer.(*produce.Response)
	if failed != nil || !ok {
		return
	}
	for _, t := range resp.Topics {
		for _, answered := range t.Partitions {
			part := r.parts[t.Topic]
			if part == nil || part.partition != answered.Partition {
				continue
			}
			if part.err = nil; answered.ErrorCode != 0 {
				part.err = kafka.Error(answered.ErrorCode)
			}
		}
	}
}

// close ends what is being written. Nobody may write any more.
func (p *producer) close() {
	p.end()
	p.wg.Wait()
}
