package dedupe

import (
	"bytes"
	"testing"

	"github.com/jackc/pgx/v5/pgtype"
)

func TestBytesEncodedAsPgxDoes(t *testing.T) {
	t.Parallel()
	theirs, ours := pgtype.NewMap(), pgtype.NewMap()
	fastBytes(ours)
	for _, all := range [][][]byte{nil, {}, {{}}, {nil}, {[]byte("a")}, {[]byte("first"), nil, {}, bytes.Repeat([]byte{0, 0xff}, 5000)}, {nil, nil}} {
		for _, format := range []int16{pgtype.BinaryFormatCode, pgtype.TextFormatCode} {
			want, err1 := theirs.Encode(pgtype.ByteaArrayOID, format, all, []byte("before"))
			got, err2 := ours.Encode(pgtype.ByteaArrayOID, format, all, []byte("before"))
			if err1 != nil || err2 != nil || !bytes.Equal(got, want) || (got == nil) != (want == nil) {
				t.Errorf("%q in format %d: got %x, %v; want %x, %v", all, format, got, err2, want, err1)
			}
		}
	}
}
