// Package drill re-enacts outages: real processes of this program on real
// PostgreSQL and a real Apache Kafka cluster, under load, with simulated
// providers; and lets package judge say what became of every message that was
// answered 202.
//
// A drill is a value of Drill in its own file, listed in All. It gets a Stage
// with everything running and the load going, does its harm, shows that it bit
// (Stage.Bit), and returns once the stores are well again. The load, the
// timeline, the repeats at the end and the verdict are the harness's.
package drill
