// Package membership is gossip: which nodes seem alive. It is hashicorp's
// memberlist (SWIM) over the management port: packets on the UDP socket of that
// number, encrypted with a key of the cluster, streams over the port's TLS.
//
// What it says is a hint and no more. A starved processor makes live nodes look
// dead; nothing here decides who owns a session or who votes. It does not know
// Raft either: the addresses to find again after a partition are given to it.
//
// Facts about memberlist 0.7 that shaped this package:
//   - Once a dead node's retention is over, nobody redials it: hence the rejoin
//     loop over the addresses of SetPeers.
//   - The delegates run under memberlist's lock, so they only note what they
//     are told; OnChange is called from a goroutine of this package, coalesced.
//   - Node.State is never set (a field of the same name shadows it) and an event
//     does not tell leaving from dying: a node that leaves says so in its meta.
//   - A failed packet write that is not a *net.OpError ends a probe without
//     suspicion: the transport reports every packet as sent.
//   - The address of a known node is not replaced until it is dead, and then
//     only if DeadNodeReclaimTime is set.
//   - Meta over 512 bytes and Leave after Shutdown panic; both are guarded.
//   - Shutdown does not wait for memberlist's own goroutines. They end by
//     themselves within a probe's time, as their connections are closed.
package membership
