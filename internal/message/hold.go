package message

import "time"

// Hold is a person's word that nothing of a lane, a tenant or a provider is
// handed over until it is released. Exactly one of Lane, Tenant and Provider is
// set.
type Hold struct {
	ID         int64
	Lane       Lane
	Tenant     int32
	Provider   string
	Reason     string
	By         string
	At         time.Time
	ReleasedBy string
	ReleasedAt time.Time // zero while it holds
	Aside      int64     // messages of the tenant that it has set aside
}
