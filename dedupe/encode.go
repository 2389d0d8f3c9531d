package dedupe

import (
	"encoding/binary"
	"slices"

	"github.com/jackc/pgx/v5/pgtype"
)

// fastBytes has m encode [][]byte by byteaArrays.
func fastBytes(m *pgtype.Map) {
	if t, ok := m.TypeForOID(pgtype.ByteaArrayOID); ok {
		m.RegisterType(&pgtype.Type{Name: t.Name, OID: t.OID, Codec: byteaArrays{t.Codec}})
	}
}

// byteaArrays is pgx's codec, but that it makes room for a whole [][]byte at
// once. Grown step by step, the buffer for the bodies of a batch is copied five
// times: half of what accepting allocates.
type byteaArrays struct{ pgtype.Codec }

func (c byteaArrays) PlanEncode(m *pgtype.Map, oid uint32, format int16, value any) pgtype.EncodePlan {
	if _, ok := value.([][]byte); ok && format == pgtype.BinaryFormatCode {
		return c
	}
	return c.Codec.PlanEncode(m, oid, format, value)
}

// Encode implements pgtype.EncodePlan: PostgreSQL's array_recv reads it.
func (byteaArrays) Encode(value any, buf []byte) ([]byte, error) {
	all := value.([][]byte)
	size, null := 0, uint32(0)
	for _, b := range all {
		size += 4 + len(b)
		if b == nil {
			null = 1
		}
	}
	buf = slices.Grow(buf, 20+size+size/8) // and for the arguments that follow
	be := binary.BigEndian
	for _, v := range []uint32{1, null, pgtype.ByteaOID, uint32(len(all)), 1} { // dimensions, nulls, type, length, first index
		buf = be.AppendUint32(buf, v)
	}
	for _, b := range all {
		if b == nil {
			buf = be.AppendUint32(buf, 1<<32-1)
			continue
		}
		buf = append(be.AppendUint32(buf, uint32(len(b))), b...)
	}
	return buf, nil
}
