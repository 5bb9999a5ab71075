package cluster

import (
	"time"

	"github.com/hashicorp/raft"
)

// Server is one member of the raft configuration.
type Server struct {
	ID    string `json:"id"`
	Addr  string `json:"addr"` // management host:port
	Voter bool   `json:"voter"`
}

// Servers returns the newest raft configuration that this node knows; it may
// not be committed yet.
func (c *Cluster) Servers() []Server {
	r := c.opened.Load()
	if r == nil {
		return nil
	}
	f := r.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	var out []Server
	for _, s := range f.Configuration().Servers {
		out = append(out, Server{ID: string(s.ID), Addr: string(s.Address), Voter: s.Suffrage == raft.Voter})
	}
	return out
}

// Stats are figures for people and dashboards.
type Stats struct {
	State   string `json:"state"` // leader, follower, candidate, shutdown
	Term    uint64 `json:"term"`
	Applied uint64 `json:"applied"` // log indices
	Commit  uint64 `json:"commit"`
	Last    uint64 `json:"last"`
	// LastContact is how long ago this node heard its leader: 0 on the leader,
	// negative if it never has.
	LastContact time.Duration `json:"last_contact"`
	// FsyncP50 and FsyncP99 are of the writes to raft's log since the start,
	// their syncs included; upper bounds, exact to an eighth.
	FsyncP50 time.Duration `json:"fsync_p50"`
	FsyncP99 time.Duration `json:"fsync_p99"`
	// LogWrites is how many those were.
	LogWrites uint64 `json:"log_writes"`
	// Entries and Commands that this node put into the log as leader, and how
	// many commands an entry held.
	Entries    uint64   `json:"entries"`
	Commands   uint64   `json:"commands"`
	BatchSizes []Bucket `json:"batch_sizes"`
	// LogBytes were appended to this node's log since the start.
	LogBytes uint64 `json:"log_bytes"`
	// Pending commands wait for the log, or for its answer.
	Pending int `json:"pending"`
}

// DiskTime is how long the writes of the log and of snapshots have taken since the
// start, one to the log that is under way included. It is quick.
func (c *Cluster) DiskTime() time.Duration { return c.guard.time() }

// LogWrites is how many synced writes to the log there were since the start.
func (c *Cluster) LogWrites() uint64 { return c.guard.fsync.total() }

// Stats returns a snapshot of the figures.
func (c *Cluster) Stats() Stats {
	s := Stats{
		State:      stateName(c.raft.State()),
		Term:       c.raft.CurrentTerm(),
		Applied:    c.raft.AppliedIndex(),
		Commit:     c.raft.CommitIndex(),
		Last:       c.raft.LastIndex(),
		FsyncP50:   c.guard.fsync.quantile(0.5),
		FsyncP99:   c.guard.fsync.quantile(0.99),
		LogWrites:  c.guard.fsync.total(),
		Entries:    c.prop.entries.Load(),
		Commands:   c.prop.commands.Load(),
		BatchSizes: c.prop.batchSizes.buckets(),
		LogBytes:   c.log.bytes.Load(),
	}
	c.prop.mu.Lock()
	s.Pending = c.prop.queue.commands
	c.prop.mu.Unlock()
	switch at := c.raft.LastContact(); {
	case s.State == "leader":
	case at.IsZero():
		s.LastContact = -1
	default:
		s.LastContact = time.Since(at)
	}
	return s
}

func stateName(s raft.RaftState) string {
	switch s {
	case raft.Leader:
		return "leader"
	case raft.Follower:
		return "follower"
	case raft.Candidate:
		return "candidate"
	}
	return "shutdown"
}
