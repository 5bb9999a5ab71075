package cluster

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/fsm"
)

// A leader sends an entry to the others while it syncs its own copy (Ongaro,
// Consensus: Bridging Theory and Practice, 2014, section 10.2.1): then one sync is
// waited for and not two in a row. Raft writes first, sends then, and counts its own
// copy at once, so this is what keeps the promise that what is committed is on the
// disks of a majority:
//
//   - Raft hears that another server has an entry only once this one's copy is synced
//     (syncedTransport). Where it takes another's copy to commit, which is with two
//     voters and more, nothing is committed before.
//   - Nothing else that binds this server comes before the sync: it goes before the next
//     append, and before a term or a vote is written, and so before all that it says of
//     its log in another term, but for pre-votes, which bind nobody.
//   - Only commands are sent early: with a change of the servers the number of voters
//     may become one.

// unsyncedLog is a log store that can leave the sync of an append for later.
type unsyncedLog interface {
	raft.LogStore
	// StoreUnsynced appends as StoreLogs does, but for the sync, which the caller makes
	// before the next append. What the store writes itself meanwhile, it syncs after it.
	StoreUnsynced(logs []*raft.Log) (sync func() error, err error)
}

// pendingSync is of the newest append that was sent early.
type pendingSync struct {
	first uint64        // its first index
	done  chan struct{} // closed when its sync has ended
	err   error         // of the sync, once done
}

// errUnsynced says that the wait for a sync was given up.
var errUnsynced = errors.New("the entry is not on this server's disk yet")

// wait returns once the entry at index is synced, as most are. It gives up when ended
// is closed, if that is not nil. A nil pendingSync is of none.
func (p *pendingSync) wait(index uint64, ended <-chan struct{}) error {
	if p == nil || index < p.first {
		return nil
	}
	select {
	case <-p.done:
		return p.err
	case <-ended:
		return errUnsynced
	}
}

// append stores logs, and leaves the sync for later if it may.
func (l *guardedLog) append(logs []*raft.Log) error {
	if err := l.settle(nil); err != nil {
		return err
	}
	store, ok := l.store.(unsyncedLog)
	if !ok || l.parallel == nil || !onlyCommands(logs) || !l.parallel() {
		return l.guard.write("append", func() error { return l.store.StoreLogs(logs) })
	}
	var sync func() error
	if err := l.guard.watch("append", func() (err error) {
		sync, err = store.StoreUnsynced(logs)
		return err
	}); err != nil {
		return err
	}
	p := &pendingSync{first: logs[0].Index, done: make(chan struct{})}
	l.pending.Store(p)
	l.syncs.Go(func() {
		p.err = l.guard.write("sync", sync)
		close(p.done)
	})
	return nil
}

// settle waits for a sync that was left for later, or until ended is closed, if it is
// not nil.
func (l *guardedLog) settle(ended <-chan struct{}) error {
	return l.pending.Load().wait(math.MaxUint64, ended)
}

func onlyCommands(logs []*raft.Log) bool {
	return !slices.ContainsFunc(logs, func(e *raft.Log) bool { return e.Type != raft.LogCommand })
}

// parallel reports whether this node leads, and takes another server to commit.
func (c *Cluster) parallel() bool {
	r := c.opened.Load()
	return r != nil && r.State() == raft.Leader && len(fsm.VotersOf(r.GetConfiguration().Configuration())) > 1
}

// syncedTransport holds back what other servers say of entries that this one has not
// synced.
type syncedTransport struct {
	raftNetwork
	ctx     context.Context // ends what is held back
	pending *atomic.Pointer[pendingSync]
}

func (t syncedTransport) AppendEntries(to raft.ServerID, addr raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if err := t.raftNetwork.AppendEntries(to, addr, req, resp); err != nil {
		return err
	}
	return t.pending.Load().wait(lastOf(req), t.ctx.Done())
}

func (t syncedTransport) AppendEntriesPipeline(to raft.ServerID, addr raft.ServerAddress) (raft.AppendPipeline, error) {
	pipeline, err := t.raftNetwork.AppendEntriesPipeline(to, addr)
	if err != nil {
		return nil, err
	}
	p := &syncedPipeline{AppendPipeline: pipeline, pending: t.pending, ready: make(chan raft.AppendFuture), ended: make(chan struct{})}
	p.relays.Go(p.relay)
	return p, nil
}

// lastOf is the index of the last entry of req, 0 if it has none.
func lastOf(req *raft.AppendEntriesRequest) uint64 {
	if n := len(req.Entries); n > 0 {
		return req.Entries[n-1].Index
	}
	return 0
}

type syncedPipeline struct {
	raft.AppendPipeline
	pending *atomic.Pointer[pendingSync]
	ready   chan raft.AppendFuture
	ended   chan struct{}
	relays  sync.WaitGroup
}

func (p *syncedPipeline) Consumer() <-chan raft.AppendFuture { return p.ready }

func (p *syncedPipeline) Close() error {
	close(p.ended)
	err := p.AppendPipeline.Close()
	p.relays.Wait()
	return err
}

func (p *syncedPipeline) relay() {
	for {
		select {
		case f := <-p.AppendPipeline.Consumer():
			if p.pending.Load().wait(lastOf(f.Request()), p.ended) != nil {
				continue // this server stops; raft goes on sending until it has
			}
			select {
			case p.ready <- f:
			case <-p.ended:
				return
			}
		case <-p.ended:
			return
		}
	}
}
