// Package dedupe is the ledger: PostgreSQL's account of every message, and the
// one judge of whether it may be handed to a provider.
//
// # Tables
//
// A message is a row in message, keyed by its position n, which also tells its
// lane. Content is kept once for each submission. What happens to a message is
// appended as rows of attempt and outcome, keyed by (n, no); nothing on the hot
// path is updated but the stream counters. The exceptions have small tables:
// waiting (leave to make an attempt, from a time on), doubt, decision, silent;
// and newest and superseded, for messages with a supersede key.
//
//	                    ┌────────── waiting(no=k+1, due) ◀──────────┐
//	                    ▼                                           │
//	accept ──▶ attempt k: send ──▶ outcome k: deferred, returned ───┤
//	               │    │     └──▶ outcome k: sent ───▶ sent        │
//	               │    │     └──▶ outcome k: rejected ▶ failed     │
//	               │    │     └──▶ outcome k: unknown ─▶ doubt ──▶ decision resend
//	               │    └──▶ silence ──────────────────▶ doubt ──▶ decision sent ▶ sent
//	               │                                         └───▶ decision drop ▶ failed
//	               └ attempt k: cancel ▶ canceled · expire ▶ expired · supersede ▶ superseded · hold ▶ held
//
// A held message that is released has outcome k: returned, and its leave for
// k+1. A hold of a lane, a tenant, a provider or a tag (table hold) stands before
// the attempts: hold_back refuses the claim, or sets a tenant's or a tag's aside in
// waiting, due when it expires or when the hold is released.
//
// A message that failed comes back by decision k: resend, too, which a replay
// makes: by filter only if no attempt of it may have been taken, else by name.
//
// Beside Due and Unclaimed, which go by age, Fair brings a lane's messages tenant
// by tenant. It only reads, but for the column waiting.tenant, which no rule
// depends on.
//
// # Invariants
//
//  1. (n, no) is unique in attempt. Sending, canceling, expiring,
//     superseding and holding all insert the next row, so the primary key picks the one winner.
//  2. Attempt k+1 exists only if outcome k says "not taken" (deferred,
//     returned), or decision k says resend. A trigger refuses anything else,
//     whoever inserts.
//  3. Every message that has not ended is above its lane's cursor without an
//     attempt, or has a waiting row, or its last attempt is open, in doubt or a
//     hold. A waiting row goes only in the transaction that makes its attempt.
//  4. A claim is the asker's only if the row holds the token that it made up.
//     Asking again with the same token gives the same answer, so a commit whose
//     fate is unknown is asked again until the ledger answers.
//  5. The numbers of a stream are 1..N: they are given out under the lock of
//     the stream's counter, in the transaction that inserts the messages. A
//     counter that is missing is an error, never a new 0.
//  6. The same (tenant, idempotency key) has one identity, and one fingerprint.
//     A second request that the journal had promised is under a derived key, and
//     held (Enter).
//  7. Under each (tenant, supersede key) all submissions but the newest have a
//     row in superseded, from the very transaction on that brings the newer one.
//     A claim that begins later makes no attempt to send of theirs.
//  8. What a policy has sent again after a lost answer may have been taken: until
//     then its provider's word ends it, and nobody's cancel; past its life it is
//     in doubt. The attempt that says so is worker 0's, and hands nothing over.
//
// # Rollback
//
// A database that forgot what it had committed (restored from a backup; a
// replica that lagged) is noticed by whoever knew more (rollback.go), and noted in
// table rollback. While that row is open the functions refuse to accept, claim,
// record and sweep, with SP004. A reconciliation (reconcile.go) enters what Kafka
// knows and begins another branch (table lineage).
//
// # Time
//
// PostgreSQL's clock_timestamp() judges expiry, due times and silence. A
// worker's own clocks can only make it stop earlier.
//
// # What a crash leaves
//
// Each operation is one transaction. Killed before the claim's commit: the
// message is unclaimed, and the lane's cursor finds it. After it: the attempt
// is open; with its process's heartbeat gone it becomes a doubt. After the
// outcome's commit: nothing is left to do.
package dedupe
