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
// while. To raft a request that is held is one that takes long; it counts as one
// failure, after which raft pauses for milliseconds.
type patientTransport struct {
	raftNetwork
	ctx   context.Context // ends what is held
	clock seam.Clock
	// look is how often a request that is held looks whether raft still wants it:
	// whether this node leads in its term, and the server belongs to the cluster.
	look   time.Duration
	wanted func(to raft.ServerID, term uint64) bool

	mu   sync.Mutex
	away map[raft.ServerID]absence
}

// absence is of a server whose heartbeats of a term fail.
type absence struct {
	term uint64
	back chan struct{} // closed when it answers one of that term
}

// errAway is what a request ends with that was held for long. Raft makes a new one if
// it still wants to: to where the server is now, with what the log holds now.
var errAway = wire.Errorf(wire.Code_UNAVAILABLE, "the server did not answer heartbeats")

func (t *patientTransport) AppendEntries(to raft.ServerID, addr raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if heartbeat(req) {
		err := t.raftNetwork.AppendEntries(to, addr, req, resp)
		t.heard(to, req.Term, err == nil)
		return err
	}
	if err := t.await(to, req.Term, func() { req.Entries = nil }); err != nil {
		return err
	}
	return t.raftNetwork.AppendEntries(to, addr, req, resp)
}

func (t *patientTransport) InstallSnapshot(to raft.ServerID, addr raft.ServerAddress, req *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if err := t.await(to, req.Term, func() {}); err != nil {
		return err
	}
	return t.raftNetwork.InstallSnapshot(to, addr, req, resp, data)
}

// heartbeat tells them apart as raft does.
func heartbeat(req *raft.AppendEntriesRequest) bool {
	return len(req.Entries) == 0 && req.PrevLogEntry == 0 && req.PrevLogTerm == 0 && req.LeaderCommitIndex == 0
}

// heard notes whether a server answered a heartbeat of a term. What an earlier term's
// comes to is of no interest any more.
func (t *patientTransport) heard(from raft.ServerID, term uint64, answered bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a, away := t.away[from]
	switch {
	case away && term < a.term:
	case answered && away:
		close(a.back)
		delete(t.away, from)
	case !answered && !away:
		t.away[from] = absence{term, make(chan struct{})}
	case !answered && term > a.term:
		close(a.back)
		t.away[from] = absence{term, make(chan struct{})}
	}
}

// isAway returns what is closed when the server answers a heartbeat of term again, nil
// if none of them failed since.
func (t *patientTransport) isAway(to raft.ServerID, term uint64) chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if a, away := t.away[to]; away && a.term == term {
		return a.back
	}
	return nil
}

// await returns nil when the server answers heartbeats, if that is soon: a heartbeat
// may be lost. Otherwise it calls late and returns an error when the server answers, or
// when it is no use to wait for that.
func (t *patientTransport) await(to raft.ServerID, term uint64, late func()) error {
	for looks := 0; ; looks++ {
		back := t.isAway(to, term)
		switch {
		case back == nil && looks == 0:
			return nil
		case back == nil || !t.wanted(to, term):
			return errAway
		case looks == 1:
			late()
		}
		look := make(chan struct{})
		timer := t.clock.AfterFunc(t.look, func() { close(look) })
		select {
		case <-back:
			timer.Stop()
			if looks == 0 {
				return nil
			}
			return errAway
		case <-look:
		case <-t.ctx.Done():
			timer.Stop()
			return errAway
		}
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
