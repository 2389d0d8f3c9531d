// Package broker is Kafka: topics, publishing, consuming, health. It is the
// only importer of kafka-go.
//
// Kafka spreads accepted messages over the workers, and is allowed to fail at
// it: what it loses, repeats or delays does no harm, since the ledger knows
// what was not claimed, and lets each attempt be claimed once. So publishing
// never blocks and gives up, and a consumer that is unsure reads again.
//
// # Why not kafka.Reader with a GroupID
//
// It skips messages of a topic that was made anew, commits under a generation
// that is not its own, and moves offsets back. Here each generation of the
// group has one plain reader for each of its partitions, and commits, for each
// partition, the offset below which everything is finished (tracker).
//
// Every two seconds each member audits what it reads. An end that went back is
// another log under the same name: it is read from its beginning, and so is
// committed. A partition that nobody in a settled group reads, since it was
// added or its topic made anew, makes the group join again.
//
// # Journals
//
// There Kafka does hold a promise: what the ledger could not take is in a
// journal's topic alone until a JournalConsumer's handler has entered it. So these
// topics are made as safe as the cluster allows, an append waits for its
// answer, and an offset is committed after the ledger's commit. Tail tells, in
// each API process, what is in them.
package broker
