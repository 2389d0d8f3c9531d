// Package promise holds the tests of what Stormpost promises: real processes on
// real PostgreSQL and real Apache Kafka, killed and stopped under load, and
// judged by the providers' side alone.
//
// The client writes every message that was answered 202 to its own file and
// syncs it. The simulators sync what they take to theirs. Lost is what is in
// the first and not in the second (and not in doubt); doubled is what is twice
// in the second. The ledger is asked for doubts only.
//
// The counts are those of `make torture`; STORMPOST_TEST_SCALE=8, CI's, runs the
// same tests at an eighth.
package promise
