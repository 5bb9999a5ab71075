// Package sim runs a cluster and its clients in virtual time, while faults that a
// seed draws befall them, in two grades. Whole is nodes as they ship: real
// hashicorp/raft, memberlist, TLS and quic-go over an in-memory network. Light
// leaves out TLS and QUIC (rpcnet.Carrier): raft and calls run over streams that
// state who is at their ends, clients' frames travel as messages by QUIC's rules;
// all above is the same code. It is calm most of the time, so it runs many more
// hours. Seeds, clients, ledgers, faults, disks and checks are shared.
//
// The disks lose what was not synced, tear it, hang, fail, are full and rot; the
// product's own log runs on them (cluster.WALDisk), segments and all. Its metadata
// and the vote are kept transactionally, as bbolt keeps them, and snapshots are
// there once they are closed, so neither bbolt's file nor raft's files of
// snapshots is simulated.
//
// What is not here: processes, sockets and real disks (test/jepsen-lite has
// them), 0-RTT in the light grade, and the matrix of a single move (test/matrix).
// A seed fixes topology, clocks, load and faults, not every interleaving:
// goroutines run as the Go scheduler has them; raft draws its election time-outs,
// and nodes their ids and tokens, from global sources. So a seed that failed
// fails again mostly, not always.
package sim
