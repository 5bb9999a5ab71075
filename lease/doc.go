// Package lease is the arithmetic of who may serve reads, and of when a worker
// may be fenced: ARCHITECTURE.md, "Leases", rules L1 to L6. It is pure: no goroutine, no
// clock, no randomness, no IO, and no output that depends on a map's order.
// Callers give the time, and do the locking.
//
// Three parts meet only by the messages between them:
//
//	Holder  a worker's side: what it asked, what was granted, and so until when
//	        it may serve reads of its incarnation
//	Server  a voter's side: its promises not to agree to a fence, and its
//	        withdrawals, which are for ever
//	Poll    the leader's side: when a majority has no promise left, it has them
//	        withdraw, and then the incarnation may be fenced
//
// Why it holds. A lease rests on promises of a majority of the voters, a fence
// on withdrawals of a majority. The two have a server in common. It withdrew
// after its promise had run out on its own clock, T after it received the
// renewal that the lease counts from; the worker counts T/(1+ρ) from when it
// sent that renewal. So the lease ends before the fence begins, by any two
// clocks whose rates differ by at most ρ. A restarted server, which has
// forgotten its promises, waits for the longest that it may have given, and a
// change of the voters is kept from coming between the two majorities by L4.
//
// All times are elapsed times on one process's boot-time clock; they are never
// compared with another process's.
package lease
