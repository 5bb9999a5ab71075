package cluster

import (
	"time"

	"github.com/baton-cluster/baton/fsm"
	"github.com/baton-cluster/baton/wire"
)

const (
	// CommandBytesMax bounds one command: what fits an entry alone.
	CommandBytesMax = fsm.EntryBytesMax - 1024
	// PendingCommandsMax and PendingBytesMax bound what waits for a batch. At
	// 30,000 commands a second the first is two seconds' worth; beyond it
	// Propose answers OVERLOADED.
	PendingCommandsMax = 1 << 16
	PendingBytesMax    = 64 << 20
	// commandOverheadBytes is what a command costs in an entry besides itself.
	commandOverheadBytes = 8

	// retryMin and retryMax bound the pause before a batch of unknown outcome is
	// proposed again; it doubles from one to the other. A change of leader ends
	// it.
	retryMin = 2 * time.Millisecond
	retryMax = 100 * time.Millisecond

	// forwardsMax bounds the batches that a node has under way to the leader. They
	// cost little and share its entries: one that waited here for the one before
	// would miss an entry.
	forwardsMax = 4

	// readyPoll is how often WaitReady looks.
	readyPoll = 5 * time.Millisecond

	// VotersMin is how many servers a cluster takes as voters before further
	// ones only follow, unless its nodes expect more.
	VotersMin = 3

	// ReplaceAfterDefault is how long a voter must be dead before another server gets
	// its vote: longer than a machine takes to start again.
	ReplaceAfterDefault = 5 * time.Minute
	// promoteBehindMax is how many entries a server may lack and still get a vote:
	// what is on its way under load, a few requests' worth.
	promoteBehindMax = 4 * maxAppendEntries

	// raftConnsMax bounds the inbound raft connections: each peer needs about
	// four (pipeline, heartbeat, votes, a snapshot), and reconnects briefly
	// double that.
	raftConnsMax = 512
	// raftBacklog is how many accepted connections wait for raft to take them.
	raftBacklog = 64
	// raftRequestBytesMax bounds one inbound raft request other than a snapshot:
	// a full AppendEntries of ordinary entries, or several of the largest. (What is
	// sent is less: portionBytesMax.)
	raftRequestBytesMax = maxAppendEntries*(wire.EntryBytesMax+4096) + 8*CommandBytesMax
	// maxAppendEntries is raft's limit of entries in one request.
	maxAppendEntries = 64

	// raftInFlight bounds the AppendEntries under way to one follower. There are
	// seldom more than two entries to send, but raft 1.8's pipeline needs the
	// room: a leader that steps down stops reading answers, and with the default
	// of 2 the goroutine that sends the next request then waits for ever for a
	// place, which holds up Shutdown until its limit.
	raftInFlight = 64
	// raftConnsKept bounds the connections that raft keeps to one server for later.
	raftConnsKept = 4

	// snapshotsKept: the newest and one before it.
	snapshotsKept = 2
	// A snapshot is due when this many entries, or this many bytes of them, have
	// come since the last, and half as many bytes as that has.
	snapshotEntries = 8192
	snapshotBytes   = 64 << 20
	snapshotTurns   = 256
	// snapshotRetry is how long after one that failed the next is tried.
	snapshotRetry = time.Minute
	// trailingLogs stay in the log after a snapshot, so that a follower that was
	// briefly away needs no snapshot. Entries are up to 256 KiB: 4096 of them
	// are at most 1 GiB, in practice a tenth.
	trailingLogs = 4096
	// logCacheEntries and logCacheBytes bound the cache of the newest entries,
	// from which followers are fed.
	logCacheEntries = 1024
	logCacheBytes   = 32 << 20
	// trimChunk entries are deleted in one transaction, so that appends are not
	// held up behind a long one.
	trimChunk = 256
)
