package cluster

import (
	"context"
	"errors"

	"github.com/cespare/xxhash/v2"
	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/fsm"
	"github.com/baton-cluster/baton/seam"
)

// compact takes snapshots, which let the log be cut, until ctx ends.
func (c *Cluster) compact(ctx context.Context) {
	turn := xxhash.Sum64String(c.cfg.ID) % snapshotTurns
	wait := c.cfg.Timings.Compact
	for seam.Sleep(ctx, c.cfg.Clock, wait) == nil {
		wait = c.cfg.Timings.Compact
		if !snapshotDue(c.fsm.Backlog(), turn) {
			continue
		}
		if err := c.Snapshot(); err != nil && ctx.Err() == nil {
			c.cfg.Log.Warn("no snapshot could be taken; the log grows on", "err", err, "again after", snapshotRetry)
			wait = snapshotRetry
		}
	}
}

// snapshotDue reports whether the log has grown long enough to be worth a snapshot.
// Each holds the whole state, so it waits for half as much log as it will write itself:
// then what snapshots cost is in proportion to what is written, however large the
// state is, and a restart, to which a byte of log is several times the work of one of
// state, takes about as long for either. All nodes have the same log: by its turn,
// below snapshotTurns, each waits for up to a quarter more, so that not all take theirs
// at once. (Raft's own rule counts entries: with a million sessions a third of what
// nodes did was snapshots.)
func snapshotDue(b fsm.Backlog, turn uint64) bool {
	half := b.Snapshot / 2
	return (b.Entries >= snapshotEntries || b.Bytes >= snapshotBytes) && b.Bytes >= half+half*turn/(4*snapshotTurns)
}

// Snapshot takes a snapshot now, and waits for it. Having nothing new to put
// into one is no error.
func (c *Cluster) Snapshot() error {
	err := c.raft.Snapshot().Error()
	if errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil
	}
	if errors.Is(err, raft.ErrRaftShutdown) {
		return errClosing()
	}
	return err
}
