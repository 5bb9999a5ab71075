package cluster

import (
	"context"
	"fmt"
	"io"
	"math"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/fsm"
	"github.com/baton-cluster/baton/pool"
	"github.com/baton-cluster/baton/rpcnet"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// Cluster is this node's part in the Raft group. All methods may be called from
// anywhere, at any time; after Close they refuse.
type Cluster struct {
	cfg    Config
	fsm    *fsm.FSM
	record *record
	guard  *guard
	log    *guardedLog
	stream *streamLayer
	trans  *patientTransport
	raft   *raft.Raft
	closer io.Closer // the disk
	// opened is raft once it runs: connections come in before that.
	opened atomic.Pointer[raft.Raft]
	// hadState: the log was not empty when this process started.
	hadState bool

	prop *proposer
	lead leadership
	wait applied
	// voterChange is when this process applied the voters in force.
	voterChange appliedVoters
	promises    promises

	// pilotLooks counts the autopilot's looks.
	pilotLooks atomic.Uint64
	joining    sync.Mutex // one change of the servers at a time
	forming    sync.Mutex // one pledge decision at a time
	settled    settlement
	health     health

	ctx      context.Context // ends at Close
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	compacts sync.WaitGroup        // a snapshot under way, which raft does not wait for
	jobs     pool.Pool             // calls of others
	fatal    atomic.Pointer[error] // why this node stops
	closing  sync.Once
	closeErr error
}

// Open starts this node's part: it opens and checks the disk, starts raft, and
// goes on to find, form or join the cluster by itself. It returns once the local
// parts run; WaitReady waits for the rest. ctx bounds Open alone.
//
// Errors: BAD_REQUEST (configuration), SNAPSHOT_BAD, WRONG_CLUSTER, UNAVAILABLE
// (the log file is held), INTERNAL (the log is damaged or gone). On an error
// nothing is left running.
func Open(ctx context.Context, config Config) (*Cluster, error) {
	cfg, err := config.check()
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c := &Cluster{cfg: cfg, fsm: fsm.New(cfg.Log)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if c.record, err = openRecord(cfg.Dir); err != nil {
		return nil, err
	}
	if c.record.left() {
		return nil, wire.Errorf(wire.Code_ID_USED,
			"the node of %s has left its cluster for good: remove the directory; it then joins as a new node", cfg.Dir)
	}
	if c.record.d.Reborn != "" {
		return nil, wire.Errorf(wire.Code_INTERNAL,
			"a new cluster was being made in %s when that was interrupted: run `baton recover` again (or, after `snapshot restore`, remove the directory and restore again)", cfg.Dir)
	}
	c.fsm.Subscribe(c.onApplied)
	snaps, stable, err := c.openDisk()
	if err != nil {
		return nil, err
	}
	c.prop = newProposer(cfg.Clock, cfg.Timings)
	c.prop.apply, c.prop.forward, c.prop.retry = c.applyBatch, c.forwardBatch, c.reroute
	c.lead.fns = append(c.lead.fns, c.pilot)
	if cfg.Lead != nil {
		c.lead.fns = append(c.lead.fns, cfg.Lead)
	}
	if err := c.startRaft(stable, snaps); err != nil {
		_ = c.closer.Close()
		return nil, err
	}
	if err := c.noteCluster(); err != nil {
		_ = c.Close()
		return nil, err
	}
	c.serve()
	cfg.Mgmt.Handle(rpcnet.ALPNRaft, c.stream.handle)
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		c.settle(c.ctx)
	}()
	c.compacts.Go(func() { c.compact(c.ctx) })
	return c, nil
}

// openDisk opens the stores, restores the newest snapshot, checks what raft would
// trust, and wraps them.
func (c *Cluster) openDisk() (raft.SnapshotStore, raft.StableStore, error) {
	logs, stable, snaps, closer, err := c.cfg.Disk.Open(c.cfg.Dir)
	if err != nil {
		return nil, nil, err
	}
	newest, err := c.restore(snaps)
	if err == nil {
		err = c.checkDisk(logs, stable, snaps, newest)
	}
	if err == nil {
		err = bridgeGap(logs, newest)
	}
	if err != nil {
		_ = closer.Close()
		return nil, nil, err
	}
	c.closer = closer
	c.guard = &guard{clock: c.cfg.Clock, limit: c.cfg.Timings.Stall, fail: c.fail, mute: c.mute, muteAfter: c.cfg.Timings.Mute}
	c.log = &guardedLog{store: logs, guard: c.guard, cache: &logCache{}, parallel: c.parallel}
	guarded := &guardedStable{StableStore: stable, guard: c.guard, log: c.log, ended: c.ctx.Done()}
	if err = c.log.noteFormer(); err == nil {
		err = c.openPromises(guarded)
	}
	if err != nil {
		_ = closer.Close()
		return nil, nil, damagedLog(c.cfg.Dir, err)
	}
	return &guardedSnapshots{snaps, &c.health, c.guard}, guarded, nil
}

// restore brings the newest snapshot into the state machine, and returns its index. Raft
// would do so itself, but go on with an older one where the newest is damaged, and
// without those who could tell why.
func (c *Cluster) restore(snaps raft.SnapshotStore) (uint64, error) {
	listed, err := snaps.List()
	if err != nil {
		return 0, badSnapshot(c.cfg.Dir, err)
	}
	if len(listed) == 0 {
		return 0, nil
	}
	meta, r, err := snaps.Open(listed[0].ID)
	if err == nil {
		err = c.fsm.Restore(r)
	}
	if err != nil {
		return 0, badSnapshot(listed[0].ID, err)
	}
	return meta.Index, nil
}

// checkDisk verifies that the log reaches back to the newest snapshot, which ends at
// upTo, and that a node that was a member has not lost its log.
func (c *Cluster) checkDisk(logs raft.LogStore, stable raft.StableStore, snaps raft.SnapshotStore, upTo uint64) error {
	first, err := logs.FirstIndex()
	if err != nil {
		return damagedLog(c.cfg.Dir, err)
	}
	if first > upTo+1 {
		return badSnapshot(c.cfg.Dir, fmt.Errorf("the log begins at %d, but the newest snapshot ends at %d", first, upTo))
	}
	c.hadState, err = raft.HasExistingState(logs, stable, snaps)
	if err != nil {
		return damagedLog(c.cfg.Dir, err)
	}
	if !c.hadState && c.record.member() {
		return wire.Errorf(wire.Code_INTERNAL,
			"node %s has been a server of its cluster, but its raft log in %s is gone: it may have voted, so its id must not be used again; "+
				"restore the directory, or remove it whole: the node then joins as a new one", c.cfg.ID, c.cfg.Dir)
	}
	return nil
}

// startRaft makes the transport and raft, and what reads from them.
func (c *Cluster) startRaft(stable raft.StableStore, snaps raft.SnapshotStore) error {
	t := c.cfg.Timings
	logger := newLogger(c.cfg.Log)
	c.stream = newStreamLayer(c.cfg.Advertise, t.RPC, c.cfg.RaftDial, c.acquaintance, func(err error) {
		c.cfg.Log.Debug("raft connection refused", "err", err)
	})
	c.trans = &patientTransport{
		raftNetwork: syncedTransport{repeatedVotes{portions{raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: c.stream, MaxPool: raftConnsKept, Timeout: t.RPC, Logger: logger, MaxRPCsInFlight: raftInFlight,
		})}, c.cfg.Clock, t.Heartbeat}, c.ctx, &c.log.pending},
		ctx: c.ctx, clock: c.cfg.Clock, look: t.Heartbeat, wanted: c.replicates, away: map[raft.ServerID]absence{},
	}
	// Raft's main loop waits for this channel's reader; the buffer only saves a
	// switch.
	notices := make(chan bool, 8)
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(c.cfg.ID)
	conf.HeartbeatTimeout, conf.ElectionTimeout = t.Heartbeat, t.Election
	conf.LeaderLeaseTimeout, conf.CommitTimeout = t.Lease, t.Commit
	conf.MaxAppendEntries = maxAppendEntries
	conf.ShutdownOnRemove = false
	conf.SnapshotThreshold, conf.TrailingLogs = math.MaxUint64, trailingLogs // compact decides
	conf.NoSnapshotRestoreOnStart = true                                     // restore has done it
	conf.NotifyCh = notices
	conf.Logger = logger
	conf.NoLegacyTelemetry = true
	r, err := newRaft(conf, c.fsm, c.log, stable, snaps, c.trans)
	if err != nil {
		_ = c.trans.Close()
		return err
	}
	c.raft = r
	c.opened.Store(r)
	if err := c.fatal.Load(); err != nil {
		_ = r.Shutdown().Error() // it closes the transport
		return *err
	}

	events := make(chan raft.Observation, 64)
	observer := raft.NewObserver(events, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	r.RegisterObserver(observer)
	c.wg.Add(3)
	go func() {
		defer c.wg.Done()
		c.watchLeadership(c.ctx, notices)
	}()
	go func() {
		defer c.wg.Done()
		c.probe(c.ctx, stable)
	}()
	go func() {
		defer c.wg.Done()
		defer r.DeregisterObserver(observer)
		for {
			select {
			case <-events:
				c.reroute()
			case <-c.ctx.Done():
				return
			}
		}
	}()
	return nil
}

// newRaft turns raft's panics over a damaged log into an error.
func newRaft(conf *raft.Config, f raft.FSM, logs raft.LogStore, stable raft.StableStore,
	snaps raft.SnapshotStore, trans raft.Transport) (r *raft.Raft, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = wire.Errorf(wire.Code_INTERNAL, "raft cannot start on this log: %v; remove this node's data directory: it then joins as a new node", p)
		}
	}()
	r, err = raft.NewRaft(conf, f, logs, stable, snaps, trans)
	if err != nil {
		return nil, wire.Errorf(wire.Code_INTERNAL, "raft cannot start: %v", err)
	}
	return r, nil
}

// Muted reports that this node is silent, because a write to its disk hangs.
func (c *Cluster) Muted() bool {
	return c.guard.writes.longest(c.cfg.Clock.Now()) >= c.cfg.Timings.Mute
}

// mute cuts this node off while its disk hangs, or lets it back.
func (c *Cluster) mute(on bool) {
	if on {
		c.cfg.Log.Warn("a write to the disk hangs: this node is silent until it ends, so that the others can elect", "after", c.cfg.Timings.Mute)
	}
	c.stream.mute(on)
	if on && c.cfg.OnMute != nil {
		c.cfg.OnMute()
	}
}

// fail stops this node's part in the cluster at once, and tells the owner. It
// cuts the connections first: a leader that cannot write must not go on sending
// heartbeats.
func (c *Cluster) fail(err error) {
	if !c.fatal.CompareAndSwap(nil, &err) {
		return
	}
	if c.opened.Load() == nil {
		return // Open will tell
	}
	c.health.stop(err)
	c.cfg.Log.Error("this node stops", "err", err)
	go func() {
		c.prop.stop()
		_ = c.trans.Close()
		c.cfg.OnFatal(err)
	}()
}

// Close stops this node's part and waits for what it started. Proposals that
// wait, or whose outcome is open, get SHUTTING_DOWN. It does not hand leadership
// on: see TransferLeadership. It may be called more than once.
func (c *Cluster) Close() error {
	c.closing.Do(func() { c.closeErr = c.close() })
	return c.closeErr
}

func (c *Cluster) close() error {
	c.prop.stop()
	done := make(chan error, 1)
	go func() { done <- c.closeAll() }()
	late := make(chan struct{})
	timer := c.cfg.Clock.AfterFunc(c.cfg.Timings.Stall, func() { close(late) })
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-late:
	}
	// The disk hangs. Cut the connections, so that the others can elect; what
	// waits for the disk ends with it, or with the process.
	c.cancel()
	_ = c.trans.Close()
	c.raft.Shutdown()
	return wire.Errorf(wire.Code_INTERNAL, "the disk hangs: this node was stopped, but not closed cleanly")
}

// closeAll closes in the order in which things depend on each other.
func (c *Cluster) closeAll() error {
	// Batches in the log first: raft answers them only while it runs. They are
	// decided, or given up with the leadership, within the leader's lease.
	c.prop.wait()
	// Then what else calls raft, and what runs while this node leads.
	c.cancel()
	c.wg.Wait()
	c.jobs.Wait()
	// Then raft, which closes its transport, and with it every connection. It stops
	// leading at once, and then waits for a snapshot that is being written.
	err := c.raft.Shutdown().Error()
	c.compacts.Wait()
	if terr := c.trans.Close(); err == nil {
		err = terr
	}
	c.log.syncs.Wait()
	// The disk last, when nobody writes any more.
	if derr := c.closer.Close(); err == nil {
		err = derr
	}
	return err
}

// FSM returns the replicated state on this node.
func (c *Cluster) FSM() *fsm.FSM { return c.fsm }

// ClusterID returns the cluster's id (16 bytes), nil while it is not known.
func (c *Cluster) ClusterID() []byte { return c.record.clusterID() }

// onApplied runs on raft's FSM goroutine after each entry.
func (c *Cluster) onApplied(index uint64, events []store.Event) {
	c.wait.reached(index)
	c.noteVoters(events)
	for _, e := range events {
		if e.Kind == store.EventCluster || e.Kind == store.EventRestored {
			// Once in a cluster's life, or after a restore: a sync is affordable.
			if err := c.noteCluster(); err != nil {
				c.fail(err)
			}
			return
		}
	}
}

// noteVoters notes when the voters in force came to be so here.
func (c *Cluster) noteVoters(events []store.Event) {
	for _, e := range events {
		if e.Kind != store.EventVoters && e.Kind != store.EventRestored {
			continue
		}
		now := seam.Boot(c.cfg.Clock)
		c.fsm.View(func(s *store.Store) {
			config, _ := s.Voters()
			c.voterChange.applied(config, now, e.Kind == store.EventVoters)
		})
	}
}

// noteCluster puts the id that the state names into the record.
func (c *Cluster) noteCluster() error {
	var row *wire.ClusterRow
	c.fsm.View(func(s *store.Store) { row = s.Cluster() })
	if len(row.GetClusterId()) == 0 {
		return nil
	}
	return c.record.setCluster(row.GetClusterId())
}

// await runs a call of raft's, which takes no context, until it returns or ctx
// ends. Close waits for it.
func (c *Cluster) await(ctx context.Context, fn func() error) error {
	done := make(chan error, 1)
	if !c.spawn(func() { done <- fn() }) {
		return errClosing()
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// spawn runs fn on a goroutine that Close waits for, unless this node is closing.
func (c *Cluster) spawn(fn func()) bool {
	return c.ctx.Err() == nil && c.jobs.Go(fn)
}
