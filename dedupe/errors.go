package dedupe

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/stormpost/stormpost/internal/message"
)

type pgxParseError = pgconn.ParseConfigError

// SQLSTATEs of our own, raised by the functions of migrations/.
const (
	codeLostCounter = "SP001"
	codeNoLeave     = "SP002"
	// SP003, of a process that was given up, is like a store that is away: its
	// next heartbeat brings it back.
)

const (
	codeUnique = "23505"
	codeCheck  = "23514"
	codeNull   = "23502"
	// What a batch meets when the sequence of positions, a key or a function is
	// gone, or the sequence is at its end.
	codeNoTable    = "42P01"
	codeNoKey      = "42P10"
	codeNoFunction = "42883"
	codeNoMore     = "2200H"

	codeDiskFull = "53100"
)

// ErrNumbering is returned when the ledger has lost what it numbers with: a
// stream's counter, which does not start again at 0, the sequence of positions
// or a key. It comes with message.ErrUnavailable.
var ErrNumbering = message.ErrNumbering

// ErrRefused is wrapped, beside message.ErrUnavailable, by Ping when the server
// answers and won't have us: the DSN is wrong, and waiting doesn't help.
var ErrRefused = errors.New("the database refuses us")

// refused says whether an error is about who we are, or what database we want.
func refused(err error) bool {
	var pe *pgconn.PgError
	return errors.As(err, &pe) && (strings.HasPrefix(pe.Code, "28") || pe.Code == "3D000")
}

// blame says what an error of a batch means for its rows.
type blame int

const (
	// blameRow: a row of the batch is at fault; the others can do without it.
	blameRow blame = iota
	// blameRace: the transaction lost against another and was rolled back.
	blameRace
	// blameStore: the store did not do it now; whether it did is unknown.
	blameStore
)

func blameFor(err error) blame {
	var pe *pgconn.PgError
	if !errors.As(err, &pe) {
		return blameStore
	}
	switch {
	case pe.Code == "40001", pe.Code == "40P01":
		return blameRace
	case pe.Code == codeNoMore, lostStreamIDs(pe):
		return blameStore
	case pe.Code == codeLostCounter, pe.Code == codeNoLeave,
		strings.HasPrefix(pe.Code, "22"), strings.HasPrefix(pe.Code, "23"):
		return blameRow
	}
	return blameStore
}

// rowError is what one row's caller gets for an error that is its own fault. A
// number or position that exists already, or has no partition, is ours.
func rowError(op string, err error) error {
	var pe *pgconn.PgError
	if errors.As(err, &pe) && (pe.Code == codeLostCounter || pe.Code == codeUnique || pe.Code == codeCheck) {
		return fmt.Errorf("%s: %w: %w: %s", op, message.ErrUnavailable, ErrNumbering, pe.Message)
	}
	return fmt.Errorf("%s: %w", op, err)
}

func isCode(err error, code string) bool {
	var pe *pgconn.PgError
	return errors.As(err, &pe) && pe.Code == code
}

// lostStreamIDs says whether a stream could not be made for want of a number.
func lostStreamIDs(pe *pgconn.PgError) bool { return pe.Code == codeNull && pe.TableName == "stream" }

func unavailable(op string, err error) error {
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		switch {
		case pe.Code == codeNoTable, pe.Code == codeNoKey, pe.Code == codeNoFunction, pe.Code == codeNoMore, lostStreamIDs(pe):
			return fmt.Errorf("%s: %w: %w: %w", op, message.ErrUnavailable, ErrNumbering, err)
		}
	}
	return fmt.Errorf("%s: %w: %w", op, message.ErrUnavailable, err)
}
