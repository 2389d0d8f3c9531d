package broker

import (
	"cmp"
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
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
	// produceLimit is how long one request is waited for, and produceReplicas how
	// long the node itself waits for its replicas, before it says which parts they have.
	produceLimit    = 5 * time.Second
	produceReplicas = 3 * time.Second
)

var errUnanswered = errors.New("the answer leaves the partition out")

// producer writes the lanes' batches: those that come together go in one request to
// one node, each to a partition of its topic that this node leads. kafka.Writer
// would make a request of each, and a request costs Kafka, and each of its
// replicas, more than its records do.
//
// The nodes take turns, as often as they lead partitions of a request's first lane. One
// that is silent or has failed comes after others, but for what tries whether it is
// mended (node.trouble). It is safe for concurrent use.
type producer struct {
	addr  net.Addr
	trans kafka.RoundTripper
	in    chan *parcel
	over  chan struct{} // wakes run: fewer requests are under way
	busy  atomic.Int32  // requests under way
	life  context.Context
	end   context.CancelFunc
	wg    sync.WaitGroup

	mu     sync.Mutex
	nodes  map[int32]*node
	turns  map[led]int       // of the partitions of a topic that a node leads; of all its nodes, -1
	failed map[led]time.Time // since when with these, while the node itself answers
}

// parcel is records of one topic that go to one partition.
type parcel struct {
	topic   string
	records []protocol.Record
	size    int
	done    chan error // has room for the one answer
}

func newProducer(addr net.Addr, trans kafka.RoundTripper) *producer {
	p := &producer{addr: addr, trans: trans, in: make(chan *parcel), over: make(chan struct{}, 1), nodes: make(map[int32]*node), turns: make(map[led]int), failed: make(map[led]time.Time)}
	p.life, p.end = context.WithCancel(context.Background())
	p.wg.Go(p.run)
	return p
}

// WriteMessages implements writer, for messages of one topic. What it says of each is a
// kafka.WriteErrors.
func (p *producer) WriteMessages(ctx context.Context, msgs ...kafka.Message) error {
	var parcels []*parcel
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
	each := make(kafka.WriteErrors, 0, len(msgs))
	for _, c := range parcels {
		select {
		case err := <-c.done:
			for range c.records {
				each = append(each, err)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if each.Count() == 0 {
		return nil
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
// many of it run at once is bounded by who waits for the answers, and in time.
func (p *producer) ship(batch []*parcel) {
	ctx, cancel := context.WithTimeout(p.life, produceLimit)
	defer cancel()
	leaders, err := p.leaders(ctx, batch)
	if err != nil {
		for _, c := range batch {
			c.done <- err
		}
		return
	}
	var wg sync.WaitGroup
	for _, r := range p.plan(batch, leaders, time.Now()) {
		wg.Go(func() {
			failed := p.send(r)
			p.ended(r, failed, time.Now())
			for _, part := range r.parts {
				for _, c := range part.parcels {
					c.done <- part.err
				}
			}
		})
	}
	wg.Wait()
}

// send notes at each part what came of it, and returns what failed of all.
func (p *producer) send(r *request) (failed error) {
	ctx, cancel := context.WithTimeout(p.life, produceLimit)
	defer cancel()
	req := &produce.Request{Acks: int16(kafka.RequireAll), Timeout: int32(produceReplicas / time.Millisecond)}
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
	none := cmp.Or(failed, errUnanswered)
	for _, part := range r.parts {
		part.err = none
	}
	resp, ok := answer.(*produce.Response)
	if failed != nil || !ok {
		return none
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
	return nil
}

// close ends what is being written. Nobody may write any more.
func (p *producer) close() {
	p.end()
	p.wg.Wait()
}
