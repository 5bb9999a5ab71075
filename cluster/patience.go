package cluster

import (
	"context"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// raftNetwork is what raft uses of its transport.
type raftNetwork interface {
	raft.Transport
	raft.WithPreVote
	raft.WithClose
}

// patientTransport holds what raft has to replicate to a server that does not answer
// heartbeats, until it does.
//
// Raft pauses ever longer before it tries such a server again, up to ten seconds, and
// nothing ends a pause (hashicorp/raft 1.8, replicateTo): a server that is back would
// get no entry for as long as that, though it answers heartbeats, which go on all the
// while. A request that is held fails not, so there is no pause; to raft it is one
// that takes long.
type patientTransport struct {
	raftNetwork
	ctx   context.Context // ends what is held
	clock seam.Clock
	// look is how often a request that is held looks whether raft still wants it:
	// whether this node leads in its term, and the server belongs to the cluster.
	look   time.Duration
	wanted func(to raft.ServerID, term uint64) bool

	mu   sync.Mutex
	away map[raft.ServerID]chan struct{} // closed when it answers again
}

// errAway is what a request ends with that need not be held any longer. Raft makes
// the next if it still wants it.
var errAway = wire.Errorf(wire.Code_UNAVAILABLE, "the server does not answer heartbeats")

func (t *patientTransport) AppendEntries(to raft.ServerID, addr raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if heartbeat(req) {
		err := t.raftNetwork.AppendEntries(to, addr, req, resp)
		t.heard(to, err == nil)
		return err
	}
	if t.await(to, req.Term) != nil {
		return errAway
	}
	return t.raftNetwork.AppendEntries(to, addr, req, resp)
}

// InstallSnapshot fails once it has been held: there may be a newer one to send.
func (t *patientTransport) InstallSnapshot(to raft.ServerID, addr raft.ServerAddress, req *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if t.isAway(to) != nil {
		_ = t.await(to, req.Term)
		return errAway
	}
	return t.raftNetwork.InstallSnapshot(to, addr, req, resp, data)
}

// heartbeat tells them apart as raft does.
func heartbeat(req *raft.AppendEntriesRequest) bool {
	return len(req.Entries) == 0 && req.PrevLogEntry == 0 && req.PrevLogTerm == 0 && req.LeaderCommitIndex == 0
}

// heard notes whether a server answered a heartbeat.
func (t *patientTransport) heard(from raft.ServerID, answered bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch back := t.away[from]; {
	case answered && back != nil:
		close(back)
		delete(t.away, from)
	case !answered && back == nil:
		t.away[from] = make(chan struct{})
	}
}

// isAway returns what is closed when the server answers again, nil if it does.
func (t *patientTransport) isAway(to raft.ServerID) chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.away[to]
}

// await returns when the server answers heartbeats, or an error when it is no use
// to wait for that.
func (t *patientTransport) await(to raft.ServerID, term uint64) error {
	for {
		back := t.isAway(to)
		if back == nil {
			return nil
		}
		if !t.wanted(to, term) {
			return errAway
		}
		look := make(chan struct{})
		timer := t.clock.AfterFunc(t.look, func() { close(look) })
		select {
		case <-back:
		case <-look:
		case <-t.ctx.Done():
			timer.Stop()
			return errAway
		}
		timer.Stop()
	}
}

// replicates reports whether this node leads in term and to is one of the servers.
func (c *Cluster) replicates(to raft.ServerID, term uint64) bool {
	r := c.opened.Load()
	if r == nil || r.State() != raft.Leader || r.CurrentTerm() != term {
		return false
	}
	servers := r.GetConfiguration().Configuration().Servers
	return slices.ContainsFunc(servers, func(s raft.Server) bool { return s.ID == to })
}
