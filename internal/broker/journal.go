package broker

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"
	"go.opentelemetry.io/otel/metric"

	"github.com/stormpost/stormpost/internal/message"
)

// A journal's record, version 1, is one submission:
//
//	key                 key hash, 16 bytes
//	value               a head of 74 bytes, then the canonical content
//	header traceparent  W3C, where the submission had one
//	header repeats-since  microseconds since 1970, where it may repeat what was accepted from then on
//
//	head   version 1 byte, flags 1, lane 1, recipients 1, tenant 4, accepted and
//	       expires 8 each (microseconds since 1970), key hash 16, fingerprint 32, 0 0
//
// The value alone is all that the ledger needs, so that a parked one can be
// entered by hand. Nothing but Kafka's own access control says that a record was
// accepted by us: whoever may write to these topics may send in anyone's name.
const (
	journalVersion  = 1
	journalTest     = 1 // flag: by a test-mode key
	journalHead     = 74
	repeatsSince    = "repeats-since"
	maxBody         = 10 << 20 // the API's body limit
	maxJournal      = 2*maxBody + 64<<10
	maxJournalBatch = maxJournal - 16<<10
)

// journalPartitions is few, since each append to one waits for a disk: what is
// spread over less comes in larger batches.
const journalPartitions = 3

// journalTopic is a class's journal.
func (b *Broker) journalTopic(c message.Class) string {
	return b.cfg.Prefix + ".journal." + c.String()
}

// journals are the journals' topics, and the group that drains them.
func (b *Broker) journals() sub {
	s := sub{group: b.cfg.Prefix + ".journal", config: b.journalConfig, partitions: min(journalPartitions, b.cfg.Partitions), readAhead: 2, maxBytes: maxJournal, inflightRecords: 1000, inflightBytes: 4 << 20}
	for c := message.Transactional; c <= message.Campaign; c++ {
		s.topics = append(s.topics, b.journalTopic(c))
	}
	return s
}

// EnsureJournals is EnsureTopics for the journals.
func (b *Broker) EnsureJournals(ctx context.Context) error { return b.ensure(ctx, b.journals()) }

// journalConfig makes the journals safer than any other topic: until the
// ledger has what is in them, nobody else does. Content can grow in its canonical
// form, to the double of its body at most.
func (b *Broker) journalConfig(ctx context.Context, c *kafka.Client) (replicas int, entries []kafka.ConfigEntry, err error) {
	meta, err := c.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{}})
	if err != nil {
		return 0, nil, err
	}
	// A cluster that just comes up knows of few brokers yet.
	replicas = max(1, b.cfg.Replication, min(3, len(meta.Brokers)))
	for _, e := range [][2]string{
		{"cleanup.policy", "delete"}, {"retention.ms", "-1"}, {"retention.bytes", "-1"},
		{"min.insync.replicas", strconv.Itoa(min(2, replicas))},
		{"unclean.leader.election.enable", "false"}, {"flush.messages", "1"},
		{"max.message.bytes", strconv.Itoa(maxJournal)},
	} {
		entries = append(entries, kafka.ConfigEntry{ConfigName: e[0], ConfigValue: e[1]})
	}
	return replicas, entries, nil
}

func encodeJournaled(topic string, j message.Journaled) kafka.Message {
	v := make([]byte, journalHead, journalHead+len(j.Content))
	v[0] = journalVersion
	if j.Test {
		v[1] |= journalTest
	}
	v[2], v[3] = byte(j.Lane.Code()), byte(len(j.Recipients))
	binary.BigEndian.PutUint32(v[4:], uint32(j.Tenant))
	binary.BigEndian.PutUint64(v[8:], uint64(j.AcceptedAt.UnixMicro()))
	binary.BigEndian.PutUint64(v[16:], uint64(j.ExpiresAt.UnixMicro()))
	copy(v[24:], j.Key[:])
	copy(v[40:], j.Print[:])
	m := kafka.Message{Topic: topic, Key: j.Key[:], Value: append(v, j.Content...)}
	if j.Trace != "" {
		m.Headers = append(m.Headers, kafka.Header{Key: traceparent, Value: []byte(j.Trace)})
	}
	if !j.RepeatsSince.IsZero() {
		m.Headers = append(m.Headers, kafka.Header{Key: repeatsSince, Value: strconv.AppendInt(nil, j.RepeatsSince.UnixMicro(), 10)})
	}
	return m
}

// head reads what stands before the content: all but content, stream and
// recipients, of which it has the number.
func head(v []byte) (j message.Journaled, recipients int, err error) {
	switch {
	case len(v) <= journalHead:
		return j, 0, fmt.Errorf("it has %d bytes, want more than %d", len(v), journalHead)
	case v[0] != journalVersion:
		return j, 0, fmt.Errorf("its version is %d, not %d", v[0], journalVersion)
	}
	s := &message.Submission{
		Tenant: int32(binary.BigEndian.Uint32(v[4:])), Lane: message.LaneOf(int64(v[2])), Test: v[1]&journalTest != 0,
		ExpiresAt: time.UnixMicro(int64(binary.BigEndian.Uint64(v[16:]))),
		Key:       message.KeyHash(v[24:40]), Print: message.Fingerprint(v[40:72]),
	}
	return message.Journaled{Submission: s, AcceptedAt: time.UnixMicro(int64(binary.BigEndian.Uint64(v[8:])))}, int(v[3]), nil
}

// decodeJournaled reads a record of a class's journal, or says why it is none.
func decodeJournaled(c message.Class, m *kafka.Message) (message.Journaled, error) {
	j, recipients, err := head(m.Value)
	if err != nil {
		return j, err
	}
	trace := ""
	var since time.Time
	for _, h := range m.Headers {
		switch {
		case h.Key == traceparent && len(h.Value) <= maxTraceparent:
			trace = string(h.Value)
		case h.Key == repeatsSince:
			if us, err := strconv.ParseInt(string(h.Value), 10, 64); err == nil {
				since = time.UnixMicro(us)
			}
		}
	}
	at := j.Submission
	s, err := message.Restore(at.Tenant, at.Key, m.Value[journalHead:], at.ExpiresAt, at.Test, trace)
	switch {
	case err != nil:
		return j, err
	case s.Print != at.Print:
		return j, errors.New("its content is another one than its fingerprint's")
	case s.Lane != at.Lane || s.Lane.Class != c:
		return j, errors.New("its lane is another one than its content's or its topic's")
	case len(s.Recipients) != recipients:
		return j, errors.New("it has another number of recipients than its content")
	}
	s.RepeatsSince = since
	j.Submission = s
	return j, nil
}

// JournalHandler gets what a JournalConsumer reads.
type JournalHandler interface {
	// Enter takes a submission. It may block, which holds up its partition alone.
	// The record is finished when finish is called, from anywhere; one that isn't
	// comes again, to this or another consumer.
	Enter(ctx context.Context, r JournalRecord, finish func())
	// Park keeps a record that is no submission. It is tried again until it
	// returns nil.
	Park(ctx context.Context, p Poison) error
}

// JournalRecord is a submission as it stands in a journal.
type JournalRecord struct {
	message.Journaled
	Source string // topic/partition/offset
	Value  []byte
}

// JournalConsumer reads the journals as a member of the group that drains them.
type JournalConsumer struct{ *member }

// NewJournalConsumer makes a consumer.
func (b *Broker) NewJournalConsumer() (*JournalConsumer, error) {
	read, err := b.meter.Int64Counter("messaging.client.consumed.messages", metric.WithUnit("{message}"), metric.WithDescription("Records read."))
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	return &JournalConsumer{b.newMember(b.journals(), read)}, nil
}

// Run is Consumer.Run for the journals.
func (c *JournalConsumer) Run(ctx context.Context, h JournalHandler) error {
	classes := make(map[string]message.Class)
	for k := message.Transactional; k <= message.Campaign; k++ {
		classes[c.broker.journalTopic(k)] = k
	}
	return c.run(ctx, journalTaker{h, classes})
}

type journalTaker struct {
	JournalHandler
	classes map[string]message.Class
}

func (t journalTaker) take(ctx context.Context, topic string, m *kafka.Message, tr *tracker, n uint64) error {
	j, err := decodeJournaled(t.classes[topic], m)
	if err != nil {
		return err
	}
	source := fmt.Sprintf("%s/%d/%d", topic, m.Partition, m.Offset)
	t.Enter(ctx, JournalRecord{j, source, m.Value}, func() { tr.finish(n) })
	return nil
}

// Park adds what the head says, which GET /v1/messages/{id} has told until now, if
// the record's key says so, too.
func (t journalTaker) Park(ctx context.Context, p Poison) error {
	j, recipients, err := head(p.Value)
	if err == nil && bytes.Equal(p.Key, j.Key[:]) && j.Tenant > 0 && slices.Contains(message.Lanes(), j.Lane) && recipients > 0 && recipients <= message.MaxRecipients {
		j.Recipients = make([]string, recipients)
		p.Journaled = &j
	}
	return t.JournalHandler.Park(ctx, p)
}

// JournalBacklog is how many records of each class's journal are not entered
// yet, and how many ever were: while that grows, the journal is drained.
func (b *Broker) JournalBacklog(ctx context.Context) (left, done map[message.Class]int64, err error) {
	ends, committed, err := b.progress(ctx, b.journals())
	if err != nil {
		return nil, nil, fmt.Errorf("journal backlog: %w", err)
	}
	left, done = make(map[message.Class]int64), make(map[message.Class]int64)
	for c := message.Transactional; c <= message.Campaign; c++ {
		for p, end := range ends {
			if p.topic == b.journalTopic(c) {
				left[c] += max(0, end.last-max(committed[p], end.first))
				done[c] += max(0, committed[p])
			}
		}
	}
	return left, done, nil
}
