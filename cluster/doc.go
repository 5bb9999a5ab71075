// Package cluster is the Raft group: it opens the data directory, forms or
// joins the cluster, and brings commands into the log and their results back.
//
//	Propose ─► queue ─► batch ─┬─ leader:   one raft entry ─► apply ─► results
//	                           └─ follower: "propose" call to the leader ─► results
//
// The next batch gathers while the last is under way, so the disk sets the pace
// (self-clocking group commit). An outcome that nobody knows, as after the loss
// of a leader, is resolved by proposing the same commands again: every command
// is idempotent, and an entry that the new leader's log does not hold when it
// commits ours can never commit later.
//
// What the package does not do: it gives no read lease (raft's leader lease is
// none), it decides nothing about sessions (package store does, by applying),
// and it never lets a node with an empty disk form a cluster beside a live one.
package cluster
