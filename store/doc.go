// Package store is the replicated tables and their rules: cluster, workers,
// sessions, migrations, jobs, and the memory of closed sessions. It is a pure
// function of the log. Apply takes an entry and its index, and every replica
// that applies the same entries holds the same tables, gives the same results
// and has the same hash.
//
// What it does not do, and why: it has no clock (time comes with the entry), no
// randomness, no goroutine, no lock and no map order in any output, because any
// of these would let replicas differ. It does not read entries or write files
// (package fsm does), and it decides nothing about who should own what: it
// only refuses what the rules forbid.
//
// The code map: store.go has the tables and Apply; worker.go, session.go,
// attach.go, write.go, migration.go, job.go, keys.go and closed.go have one
// function per command; row.go the session row and its copy-on-write; index.go
// the derived indexes; pack.go the form of sessions at rest; hash.go the state hash;
// read.go the reads; snapshot.go, encode.go and load.go the way out and the way in.
package store
