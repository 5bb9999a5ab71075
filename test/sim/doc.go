// Package sim runs whole nodes (real hashicorp/raft, memberlist, TLS and
// quic-go) and real clients in virtual time, over a network and disks in memory,
// while faults that a seed draws befall them.
//
// What is not here: processes, sockets and real disks (test/jepsen-lite has
// them), and the matrix of a single move (test/matrix). A seed fixes faults and
// load, not every interleaving: goroutines run as the Go scheduler has them, and
// raft draws its election time-outs from the global source.
package sim
