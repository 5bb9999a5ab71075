package baton

import (
	"context"
	"time"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

const (
	// drainLook is how often a shutdown looks whether its sessions have moved, and
	// drainStall how long it waits while none does.
	drainLook  = 20 * time.Millisecond
	drainStall = 30 * time.Second
	// closeTime bounds how long clients are given to be told that the node stops.
	closeTime = 2 * time.Second
	// handOnTime bounds the hand-over of leadership and the farewell in gossip.
	handOnTime = 5 * time.Second
)

// Shutdown moves the node's sessions to others, hands leadership on and stops.
// The node stays a voter: started again on the same data, it is the same node.
// If ctx ends first, no other node can take sessions, the drain is called off, or no
// session leaves for half a minute, it stops with what it still has: those
// sessions are reassigned, as after a crash, and nothing is lost. Shutdown returns ctx's error in the former case.
func (n *Node) Shutdown(ctx context.Context) error {
	n.stopping.Store(true) // it registers no more, if it is fenced
	err := n.drainSelf(ctx)
	if wire.CodeOf(err) == wire.Code_JOB_NOT_DONE {
		n.cfg.Log.Warn("the node stops with sessions", "why", err)
		err = nil
	}
	if n.cluster.IsLeader() {
		hand, cancel := context.WithTimeout(context.WithoutCancel(ctx), handOnTime)
		if err := n.cluster.TransferLeadership(hand); err != nil {
			n.cfg.Log.Warn("leadership was not handed on", "err", err)
		}
		cancel()
	}
	leave, cancel := context.WithTimeout(context.WithoutCancel(ctx), handOnTime)
	defer cancel()
	if err := n.members.Leave(leave); err != nil {
		n.cfg.Log.Debug("gossip was not told", "err", err)
	}
	if cerr := n.Close(); err == nil {
		err = cerr
	}
	return err
}

func (n *Node) drainSelf(ctx context.Context) error {
	return n.drainFor(ctx, "shutdown of "+n.cfg.Name, true)
}

// drainFor moves this node's sessions off. untilRegister: its next start takes
// sessions again. JOB_NOT_DONE: not all of them.
func (n *Node) drainFor(ctx context.Context, by string, untilRegister bool) error {
	if n.soleWorker() || n.worker.Incarnation() == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	nonce, err := newNonce()
	if err != nil {
		return err
	}
	log, cancelLog := context.WithCancel(ctx)
	defer cancelLog()
	defer n.cfg.Clock.AfterFunc(drainStall, cancelLog).Stop()
	res, err := n.insist(log, &wire.Command{Kind: &wire.Command_StartJob{StartJob: &wire.StartJob{
		Nonce: nonce, Kind: wire.JobKind_JOB_KIND_DRAIN, Worker: n.id, Incarnation: n.worker.Incarnation(),
		UntilRegister: untilRegister, By: by,
	}}})
	switch {
	case err != nil && ctx.Err() == nil && log.Err() != nil:
		return n.notDrained("the cluster's log takes nothing")
	case err != nil:
		return err
	}
	// JOB_ACTIVE: an operator's drain does it. What else is refused leaves the
	// sessions here: they are reassigned as after a crash.
	switch code := res[0].GetCode(); code {
	case wire.Code_OK, wire.Code_JOB_ACTIVE:
	case wire.Code_STALE_INCARNATION, wire.Code_WORKER_FENCED: // they have no owner any more
		return nil
	default:
		if n.owned() > 0 {
			return n.notDrained(code.Label())
		}
		return nil
	}
	j := res[0].GetJob()
	if j.GetConfirmByUs() != 0 || j.GetState() == wire.JobState_JOB_STATE_PAUSED {
		// Who stops the node has settled what the operator was to be asked, or waited for.
		// If that is refused nobody drains the node, which will show.
		if _, err := n.proposeUpdate(log, &wire.UpdateJob{
			Job: j.GetId(), State: wire.JobState_JOB_STATE_RUNNING, Confirm: true, By: "shutdown of " + n.cfg.Name,
		}); err != nil {
			n.cfg.Log.Info("the drain does not go on", "job", j.GetId(), "err", err)
		}
	}
	return n.awaitDrained(ctx, j.GetId())
}

// notDrained is JOB_NOT_DONE: sessions stay here, and waiting will not change it.
func (n *Node) notDrained(why string) error {
	return wire.Errorf(wire.Code_JOB_NOT_DONE, "node %s still owns %d sessions: %s", n.cfg.Name, n.owned(), why)
}

// awaitDrained waits for the node's sessions to leave, for as long as they do.
func (n *Node) awaitDrained(ctx context.Context, job uint64) error {
	left, since := n.owned(), n.cfg.Clock.Now()
	for left > 0 && !n.soleWorker() {
		why := n.drainEnded(job)
		if why == "" && n.cfg.Clock.Now()-since >= drainStall {
			why = "none could be moved for " + drainStall.String()
		}
		if why != "" {
			return n.notDrained(why)
		}
		if err := seam.Sleep(ctx, n.cfg.Clock, drainLook); err != nil {
			return err
		}
		if now := n.owned(); now != left {
			left, since = now, n.cfg.Clock.Now()
		}
	}
	if left > 0 {
		return n.notDrained("no other node takes them")
	}
	return nil
}

// drainEnded says why nobody drains this node any more, if so.
func (n *Node) drainEnded(job uint64) (why string) {
	n.cluster.FSM().View(func(st *store.Store) {
		switch st.Job(job).GetState() {
		case wire.JobState_JOB_STATE_CANCELLED, wire.JobState_JOB_STATE_FAILED:
			why = "its drain was ended"
		}
	})
	return why
}

// owned counts the sessions that are this node's by its own state machine.
func (n *Node) owned() (count int) {
	n.cluster.FSM().View(func(st *store.Store) { count = st.Counts().Owned[n.id] })
	return count
}

// soleWorker reports that nobody could take this node's sessions.
func (n *Node) soleWorker() bool {
	sole := true
	n.cluster.FSM().View(func(st *store.Store) {
		for _, r := range st.Workers() {
			if r.GetId() != n.id && r.GetState() == wire.WorkerState_WORKER_STATE_ACTIVE {
				alive, known := n.doubt.alive(r.GetId())
				sole = sole && known && !alive
			}
		}
	})
	return sole
}

// Close stops the node at once. Its sessions are reassigned as after a crash.
// It may be called more than once, and returns when everything has stopped.
func (n *Node) Close() error {
	if n.closing.CompareAndSwap(false, true) {
		n.close()
		close(n.stopped)
	}
	<-n.stopped
	return nil
}

// close ends the parts, each before what it needs.
func (n *Node) close() {
	n.cancel()
	if n.worker != nil {
		n.worker.Close() // streams are told, nothing new is proposed
	}
	if n.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), closeTime)
		_ = n.server.Close(ctx)
		cancel()
	} else if n.userPort != nil {
		_ = n.userPort.Close()
	}
	if n.cluster != nil {
		_ = n.cluster.Close() // ends the director; pending proposals are answered
	}
	if n.members != nil {
		_ = n.members.Close()
	}
	if n.peers != nil {
		n.peers.Close()
	}
	if n.admin != nil {
		n.admin.Close()
	}
	if n.mgmt != nil {
		_ = n.mgmt.Close()
	}
	n.backups.close()
	if n.events != nil {
		n.events.close()
	}
	if n.worker != nil {
		n.worker.Wait()
	}
	if n.http != nil {
		_ = n.http.Close() // late: it says why the node stops
	}
	n.jobs.Wait()
	if n.lock != nil {
		_ = n.lock.Close() // last: nobody may open the data before
	}
}
