// Package migrate moves sessions between workers: the migration state table,
// tokens, requests, the sealed snapshot, placement, the handoff core, and the
// Director that runs all of it on the leader.
//
// Everything here but the Director is pure: no clock, no goroutine, and
// randomness only from the reader that is handed in. Jobs (drains, rebalances)
// are the log's; the Director paces and feeds them. It is a thin runner; it owns nothing that must outlive it. What decides is the log: a
// director that dies leaves a migration begun or pivoted in the replicated
// tables, and the next one aborts the former and ends the latter. Two directors
// at once disturb each other and harm nothing, because only commits count.
//
// What this package does not do: freeze, capture, activate or talk to clients
// (the workers do, asked through Caller), and decide who owns a session (the
// store does, when a command is applied).
package migrate
