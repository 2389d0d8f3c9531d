package smtp

import (
	"errors"
	"fmt"
	"time"
)

var (
	// ErrClosed is what Reserve answers after Close.
	ErrClosed = errors.New("smtp: provider is closed")
	// ErrCredentials: the server refused the username and password or token for
	// good.
	ErrCredentials = errors.New("credentials refused")
	// errConnect: nobody answers.
	errConnect = errors.New("connect")
	// errProtocol: what came is not SMTP.
	errProtocol = errors.New("protocol error")
)

// Error is a server's refusal.
type Error struct {
	Step     string // the command, or "greeting"
	Code     int    // 400 to 599
	Enhanced string // "5.7.8" (RFC 3463), or empty
	Reply    string // one line of at most 500 bytes, with the code
}

func (e *Error) Error() string { return e.Step + ": " + e.Reply }

// DownError is what Reserve answers when no connection can be had. Until then
// it answers so at once, without trying.
type DownError struct {
	Provider string
	Until    time.Time // by Config.Now
	Err      error
}

func (e *DownError) Error() string {
	return fmt.Sprintf("smtp: %s can't be reached, next try at %s: %v", e.Provider, e.Until.UTC().Format(time.RFC3339), e.Err)
}

func (e *DownError) Unwrap() error { return e.Err }
