// Package recovery is for the long jobs by which a backlog comes back.
//
// Drain enters what the journals kept while the ledger was away. Replay,
// evacuation and reconciling a ledger that was rolled back are to come: each will
// be a plan with checkpoints, so that running it again resumes it.
//
// What recovers without being asked is nearer to what it protects: the lane's
// cursor and the sweep for doubts are operations of the ledger (dedupe), and the
// feed that sends what they find is a part of delivery. The guard of the
// numbering (Guard) has its loop here; what it looks at is the ledger's matter.
package recovery
