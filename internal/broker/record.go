package broker

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/stormpost/stormpost/internal/message"
)

// A lane's record, version 1:
//
//	key                 position, 8 bytes, big-endian
//	value               canonical content, or nothing (flag 1)
//	header sp           version 1 byte, flags 1, attempt 2 (big-endian), id 25
//	header so           version 1 byte, flags 1, tenant 4, accepted and expires 8 each
//	                    (microseconds since 1970), number in the stream 8
//	header traceparent  W3C, where the submission had one
//
// Nobody reads so but whoever puts a message back that the ledger lost. Whoever can write to the topic can write such a record, so it proves nothing:
// the content must have the fingerprint that is in the id, and the ledger must
// have the id at the position.
const (
	recordVersion  = 1
	flagReference  = 1 // the content is in the ledger
	headerSize     = 1 + 1 + 2 + 25
	headerName     = "sp"
	originName     = "so"
	originSize     = 1 + 1 + 4 + 8 + 8 + 8
	originTest     = 1 // flag
	traceparent    = "traceparent"
	maxTraceparent = 128
)

func encode(topic string, it message.Item) kafka.Message {
	h := make([]byte, headerSize+8)
	head, key := h[:headerSize], h[headerSize:]
	head[0] = recordVersion
	binary.BigEndian.PutUint16(head[2:], uint16(it.Attempt))
	copy(head[4:], it.ID[:])
	binary.BigEndian.PutUint64(key, uint64(it.Position))
	value := it.Content
	if len(value) > maxContent {
		value = nil
	}
	if len(value) == 0 {
		head[1] = flagReference
	}
	m := kafka.Message{Topic: topic, Key: key, Value: value, Headers: []kafka.Header{{Key: headerName, Value: head}}}
	if o := it.Origin; o != nil {
		b := make([]byte, originSize)
		b[0] = recordVersion
		if o.Test {
			b[1] |= originTest
		}
		binary.BigEndian.PutUint32(b[2:], uint32(o.Tenant))
		binary.BigEndian.PutUint64(b[6:], uint64(o.AcceptedAt.UnixMicro()))
		binary.BigEndian.PutUint64(b[14:], uint64(o.ExpiresAt.UnixMicro()))
		binary.BigEndian.PutUint64(b[22:], uint64(o.Sequence))
		m.Headers = append(m.Headers, kafka.Header{Key: originName, Value: b})
	}
	if it.Trace != "" {
		m.Headers = append(m.Headers, kafka.Header{Key: traceparent, Value: []byte(it.Trace)})
	}
	return m
}

// refer leaves m's content to the ledger.
func refer(m *kafka.Message) {
	m.Value = nil
	m.Headers[0].Value[1] |= flagReference
}

// origin reads the header so; nil where there is none of this version.
func origin(m *kafka.Message) *message.Origin {
	for _, h := range m.Headers {
		if b := h.Value; h.Key == originName && len(b) == originSize && b[0] == recordVersion {
			return &message.Origin{
				Tenant: int32(binary.BigEndian.Uint32(b[2:])), Test: b[1]&originTest != 0,
				AcceptedAt: time.UnixMicro(int64(binary.BigEndian.Uint64(b[6:]))), ExpiresAt: time.UnixMicro(int64(binary.BigEndian.Uint64(b[14:]))),
				Sequence: int64(binary.BigEndian.Uint64(b[22:])),
			}
		}
	}
	return nil
}

// decode reads a record of a lane's topic, or says why it is none.
func decode(lane message.Lane, m *kafka.Message) (message.Item, error) {
	var it message.Item
	var head []byte
	for _, h := range m.Headers {
		switch h.Key {
		case headerName:
			head = h.Value
		case traceparent:
			if len(h.Value) <= maxTraceparent {
				it.Trace = string(h.Value)
			}
		}
	}
	switch {
	case len(m.Key) != 8:
		return it, fmt.Errorf("its key has %d bytes, not 8", len(m.Key))
	case len(head) != headerSize:
		return it, fmt.Errorf("its header has %d bytes, not %d", len(head), headerSize)
	case head[0] != recordVersion:
		return it, fmt.Errorf("its version is %d, not %d", head[0], recordVersion)
	}
	it.Position = message.Position(binary.BigEndian.Uint64(m.Key))
	it.Attempt = int(binary.BigEndian.Uint16(head[2:]))
	copy(it.ID[:], head[4:])
	if o := origin(m); o != nil {
		it.Tenant = o.Tenant
	}
	switch {
	case it.Position <= 0 || it.Position.Lane() != lane:
		return it, fmt.Errorf("its position is of another lane")
	case it.Attempt < 1 || it.Attempt > 1<<15-1:
		return it, fmt.Errorf("its attempt is %d", it.Attempt)
	case it.ID.IsSubmission() || it.ID.Index() != it.Position.Index():
		return it, fmt.Errorf("its id is of another message")
	}
	if head[1]&flagReference != 0 {
		return it, nil
	}
	it.Content = m.Value
	if !it.ID.Matches(message.FingerprintOf(m.Value)) {
		return it, fmt.Errorf("its content is another one than its id's")
	}
	return it, nil
}
