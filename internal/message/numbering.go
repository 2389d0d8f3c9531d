package message

// Fault is something that numbering needs and that isn't as it should be.
type Fault struct {
	Name   string `json:"name"`             // plain and stable, as "counter of stream 17 is missing"
	Detail string `json:"detail,omitempty"` // what was found, or why it could not be repaired
	Stream int64  `json:"stream,omitempty"` // whose counter it is about, or 0
}

// String is the fault in a line.
func (f Fault) String() string {
	if f.Detail == "" {
		return f.Name
	}
	return f.Name + ": " + f.Detail
}
