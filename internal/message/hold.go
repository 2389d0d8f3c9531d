package message

import "time"

// Hold is a person's word that nothing of a lane, a tenant, a provider or a tag is
// handed over until it is released. Exactly one of these is set, or Tag and
// Tenant: that tag of that tenant's messages.
type Hold struct {
	ID         int64
	Lane       Lane
	Tenant     int32
	Provider   string
	Tag        string
	Reason     string
	By         string
	At         time.Time
	ReleasedBy string
	ReleasedAt time.Time // zero while it holds
	Aside      int64     // messages of the tenant or tag that it has set aside
}
