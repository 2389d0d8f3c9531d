// Package devstack runs the real stores beside a Stormpost process: PostgreSQL
// and Apache Kafka as child processes, and franz-go's in-process Kafka broker.
// `stormpost dev`, the tests and the drills use it; production doesn't.
//
// Each server owns one folder, and only what is in that folder:
//
//   - The folder is locked while a process runs a server in it. The lock goes
//     with its holder, also by kill -9, so whoever gets it is alone, and any
//     server still running in the folder is an orphan that may be stopped.
//   - A server of the folder is a process of the right program whose working
//     folder it is. Process ids kept in files are never trusted by themselves.
//   - A server never outlives its parent for long: on Linux the kernel signals
//     it when the thread that made it dies (that thread is kept for the
//     server's whole life, see child); elsewhere, and where that signal was
//     lost, the next start in the folder stops it.
//   - Everything survives a kill of the server, of the parent, or of both.
//
// Servers listen on loopback only. Ports are taken below the range from which
// systems give out ephemeral ones, so that a server that was killed finds its
// port free when it is started again.
//
// Only Unix systems are supported; signals and file locks are used throughout.
package devstack
