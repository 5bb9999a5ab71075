package cluster

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/seam"
)

// Fault is one reason why this node cannot do its part, though it runs.
type Fault struct {
	// Code names the kind: stopped, disk_stalled, snapshot_failed, no_leader,
	// not_committing, not_joined.
	Code    string `json:"code"`
	Message string `json:"message"`
}

const (
	faultStopped  = "stopped"
	faultStalled  = "disk_stalled"
	faultSnapshot = "snapshot_failed"
	faultLeader   = "no_leader"
	faultCommit   = "not_committing"
	faultJoined   = "not_joined"
)

// health is what Faults needs to remember.
type health struct {
	mu       sync.Mutex
	stopped  error // why this node stopped
	snapshot error // of the last snapshot, nil if it was good

	// commit is raft's commit index as it was seen first at since; while more is in
	// the log, it has to move.
	commit uint64
	since  time.Duration
}

func (h *health) stop(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped == nil {
		h.stopped = err
	}
}

func (h *health) snapshotEnded(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.snapshot = err
}

// stuck is how long commit has stood still although last is beyond it.
func (h *health) stuck(commit, last uint64, now time.Duration) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if commit != h.commit || last <= commit {
		h.commit, h.since = commit, now
	}
	return now - h.since
}

// Faults says what keeps this node from doing its part, as of now, nothing if all
// is well. It asks nobody and writes nothing: a leader without a majority steps
// down by itself, one that has a majority but a disk that hangs shows that in the
// write under way, and idle disks are probed.
func (c *Cluster) Faults() (out []Fault) {
	add := func(code, format string, args ...any) {
		out = append(out, Fault{code, fmt.Sprintf(format, args...)})
	}
	c.health.mu.Lock()
	stopped, snapshot := c.health.stopped, c.health.snapshot
	c.health.mu.Unlock()
	if stopped != nil {
		add(faultStopped, "%v", stopped)
	}
	now, t := c.cfg.Clock.Now(), c.cfg.Timings
	if d := c.guard.writes.longest(now); d > t.Mute/2 {
		add(faultStalled, "a write to the disk has not ended for %v", d.Round(time.Millisecond))
	}
	if snapshot != nil {
		add(faultSnapshot, "the last snapshot could not be written: %v", snapshot)
	}
	if !c.placed() {
		add(faultJoined, "this node is not in its cluster's configuration")
	}
	switch c.raft.State() {
	case raft.Leader:
		if d := c.health.stuck(c.raft.CommitIndex(), c.raft.LastIndex(), now); d > t.Mute {
			add(faultCommit, "this node leads, and has committed nothing for %v of what is in its log", d.Round(time.Millisecond))
		}
	case raft.Follower:
		if at := c.raft.LastContact(); at.IsZero() {
			add(faultLeader, "no leader was heard yet")
		} else if d := time.Since(at); d > 3*t.Heartbeat {
			add(faultLeader, "no leader was heard for %v", d.Round(time.Millisecond))
		}
	default:
		add(faultLeader, "this node has no leader, and is no leader")
	}
	return out
}

// probeKey is where a node writes to its stable store to see whether it can.
var probeKey = []byte("baton-probe")

// probe writes to the stable store now and then, through the guard that watches
// all writes, also where the log is busy: the vote may be kept elsewhere, and is
// needed when it is too late to find out.
func (c *Cluster) probe(ctx context.Context, stable raft.StableStore) {
	for n := uint64(1); ; n++ {
		if seam.Sleep(ctx, c.cfg.Clock, c.cfg.Timings.Probe) != nil {
			return
		}
		if stable.SetUint64(probeKey, n) != nil {
			return // the guard has failed the node
		}
	}
}

// guardedSnapshots notes whether the last snapshot was written. A failed one ends
// nothing: the log has what it would hold, and grows.
type guardedSnapshots struct {
	raft.SnapshotStore
	health *health
	guard  *guard
}

func (s *guardedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(version, index, term, configuration, configurationIndex, trans)
	if err != nil {
		s.health.snapshotEnded(err)
		return nil, err
	}
	return &guardedSink{sink, s.health, s.guard}, nil
}

type guardedSink struct {
	raft.SnapshotSink
	health *health
	guard  *guard
}

func (s *guardedSink) Write(p []byte) (int, error) {
	n := 0
	err := s.guard.timed(func() (err error) {
		n, err = s.SnapshotSink.Write(p)
		return err
	})
	if err != nil {
		s.health.snapshotEnded(err)
	}
	return n, err
}

func (s *guardedSink) Close() error {
	err := s.guard.timed(s.SnapshotSink.Close)
	s.health.snapshotEnded(err)
	return err
}
