// Package incident keeps what is wrong now, one incident for each cause, and
// tells people.
//
//	condition seen ──▶ pending ──(held for its time)──▶ open ──(gone for its hold-down)──▶ resolved
//	                      └──(gone)──▶ nothing            └──▶ facts updated
//
// # Invariants
//
//  1. A cause has at most one open incident.
//  2. A condition that nobody can look at now (its store is away) neither opens,
//     resolves nor forgets anything.
//  3. An incident that comes back within minutes is held open for longer each
//     time, so that nobody is told the same twice a minute.
//  4. Nothing here needs PostgreSQL or Kafka. What is kept is in memory, and in
//     a file, by which a restart goes on with the same incidents.
//  5. No sink waits for another: each has its own queue, timeout and retries.
package incident
