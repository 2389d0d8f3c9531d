package message

import "time"

// Tenant is who submits messages.
type Tenant struct {
	ID        int32
	Name      string
	Domains   []string // that it may send from; "*" for any
	Repeats   string   // what becomes of requests without a key that repeat another: off, flag or suppress
	CreatedAt time.Time
}
