package dedupe

import "time"

// SetPatience changes after how long a stream's audit answers with what it has.
func (l *Ledger) SetPatience(d time.Duration) { l.patient = d }
