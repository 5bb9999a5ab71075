package cluster

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/fsm"
	"github.com/baton-cluster/baton/store"
)

// VoterConfig is a set of voters, named by the log index of the entry that made
// it one. (Raft's own GetConfiguration().Index() is always 0 in 1.8, and counts
// what does not change the voters, too.)
type VoterConfig struct {
	Index  uint64
	Voters []string // ids, rising
}

// VoterConfigs is what this node knows of the voters. The two differ while a
// change is under way: it is in this node's log, and not yet applied here.
type VoterConfigs struct {
	// Logged is the latest in this node's log, Applied the latest that its state
	// machine has applied.
	Logged, Applied VoterConfig
	// AppliedAt is when this process applied Applied, by Config.Clock's boot time;
	// after a restart that is when it came from the snapshot or the log again.
	AppliedAt time.Duration
}

// Settled reports that no change is under way here.
func (v VoterConfigs) Settled() bool { return v.Logged.Index == v.Applied.Index }

// VoterConfigs returns both, as of one moment: Logged is not older than Applied.
func (c *Cluster) VoterConfigs() (v VoterConfigs) {
	var applied uint64
	c.fsm.View(func(s *store.Store) {
		v.Applied.Index, v.Applied.Voters = s.Voters()
		applied = s.Index()
	})
	// After the state machine: what it has applied was in the log before.
	v.Logged = c.log.voters.latest(v.Applied, applied)
	v.AppliedAt = c.voterChange.at(v.Applied.Index)
	return v
}

// VoterConfig returns the indices of VoterConfigs: of the latest voter
// configuration in this node's log, and of the latest applied here.
func (c *Cluster) VoterConfig() (latestInLog, latestApplied uint64) {
	v := c.VoterConfigs()
	return v.Logged.Index, v.Applied.Index
}

// loggedVoters follows the configurations in raft's log: entries that are
// appended, those that raft reads when it starts, and those that are truncated.
// What the state machine has applied is covered by its own row, which a snapshot
// carries; only what lies above that counts here.
type loggedVoters struct {
	mu      sync.Mutex
	entries []VoterConfig // of configuration entries, by rising index
}

func (l *loggedVoters) note(e *raft.Log) {
	if e.Type != raft.LogConfiguration {
		return
	}
	voters := fsm.VotersOf(raft.DecodeConfiguration(e.Data))
	slices.Sort(voters)
	l.mu.Lock()
	defer l.mu.Unlock()
	at, found := slices.BinarySearchFunc(l.entries, e.Index, func(v VoterConfig, i uint64) int {
		return cmp.Compare(v.Index, i)
	})
	if found {
		l.entries[at].Voters = voters
		return
	}
	l.entries = slices.Insert(l.entries, at, VoterConfig{e.Index, voters})
}

// drop forgets what was removed from the log, or lies at or below trim: it was
// applied long ago.
func (l *loggedVoters) drop(lo, hi uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = slices.DeleteFunc(l.entries, func(v VoterConfig) bool { return v.Index >= lo && v.Index <= hi })
}

// latest is the configuration in force at the log's end: that of the state
// machine, changed by what the log holds above index applied.
func (l *loggedVoters) latest(c VoterConfig, applied uint64) VoterConfig {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, v := range l.entries {
		if v.Index > applied && !slices.Equal(v.Voters, c.Voters) {
			c = v
		}
	}
	return c
}

// appliedVoters is when this process applied a voter configuration.
type appliedVoters struct {
	mu    sync.Mutex
	index uint64
	when  time.Duration
}

// applied notes that index is in force from now on. first: it is the cluster's
// first, so that nobody can have promised anything in an earlier one.
func (a *appliedVoters) applied(index uint64, now time.Duration, first bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if index == a.index {
		return
	}
	if first = first && a.index == 0; first {
		now = -maxTime
	}
	a.index, a.when = index, now
}

// at is when index was applied. One that was not noted yet is being applied
// now: as far from its wait's end as can be.
func (a *appliedVoters) at(index uint64) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if index != a.index {
		return maxTime
	}
	return a.when
}

// maxTime is later than any time of a clock, and may be added to.
const maxTime = time.Duration(1) << 61
