package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

func TestThreeNodesFormOneCluster(t *testing.T) {
	nodes := newCluster(t, 3, nil)
	id := nodes[0].c.ClusterID()
	if len(id) != wire.IDBytes {
		t.Fatalf("cluster id %x", id)
	}
	for _, n := range nodes {
		if !bytes.Equal(n.c.ClusterID(), id) {
			t.Errorf("%s: cluster %x, want %x", n.name, n.c.ClusterID(), id)
		}
		if got := n.c.Servers(); len(got) != 3 || !slices.IsSortedFunc(got, func(a, b Server) int { return bytes.Compare([]byte(a.ID), []byte(b.ID)) }) {
			t.Errorf("%s: servers %v", n.name, got)
		}
	}
	// The first configuration is the bootstrap's: only the lowest id's log began
	// with one of its own making, the others' came from the leader. Equal states
	// and one cluster id are what that leads to.
	sameState(t, nodes)
}

func TestProposeFromEveryNode(t *testing.T) {
	nodes := newCluster(t, 3, nil)
	ctx := testCtx(t)
	w := register(t, nodes[0], "worker")
	for i, n := range nodes {
		id := fmt.Sprintf("s%d", i)
		epoch := w.session(t, n, id)
		res, err := n.c.ProposeWait(ctx, w.write(id, epoch, 1), w.write(id, epoch, 2), w.write(id, epoch, 9))
		if err != nil {
			t.Fatal(err)
		}
		if res[0].GetCode() != wire.Code_OK || res[1].GetCode() != wire.Code_OK || res[2].GetCode() != wire.Code_SEQ_MISMATCH {
			t.Errorf("%s: %v", n.name, res)
		}
		if res[1].GetBefore() != res[0].GetAfter() {
			t.Errorf("%s: the second write came upon %d, not on the first's %d", n.name, res[1].GetBefore(), res[0].GetAfter())
		}
		if err := n.c.Barrier(ctx); err != nil {
			t.Fatal(err)
		}
		if row := rowOf(n, id); row == nil || string(row.GetState()[0].GetValue()) != "2" {
			t.Errorf("%s: %v after a barrier", n.name, row)
		}
	}
	sameState(t, nodes)
}

// TestGroupSpansEntries proposes one group of more commands than an entry takes.
func TestGroupSpansEntries(t *testing.T) {
	nodes := newCluster(t, 3, nil)
	_, others := leaderOf(t, nodes)
	n := others[0]
	const count = wire.EntryCommandsMax + 100
	cmds := make([]*wire.Command, count)
	for i := range cmds {
		cmds[i] = locate("s")
	}
	res, err := n.c.ProposeWait(testCtx(t), cmds...)
	if err != nil || len(res) != count {
		t.Fatalf("%d results, %v", len(res), err)
	}
	for i := range res[1:] {
		if res[i].GetPosition() >= res[i+1].GetPosition() {
			t.Fatalf("command %d is at %d, the next at %d", i, res[i].GetPosition(), res[i+1].GetPosition())
		}
	}
	if first, last := res[0].GetPosition()>>store.PositionBits, res[count-1].GetPosition()>>store.PositionBits; first == last {
		t.Errorf("%d commands are in one entry", count)
	}
}

func TestRefusedProposals(t *testing.T) {
	nodes := newCluster(t, 1, nil)
	ctx := testCtx(t)
	if _, err := nodes[0].c.ProposeWait(ctx, &wire.Command{}); wire.CodeOf(err) != wire.Code_BAD_REQUEST {
		t.Errorf("no kind: %v", err)
	}
	big := &wire.Command{Kind: &wire.Command_Write{Write: &wire.Write{Session: "s", Changes: []*wire.Change{{Key: "k", Value: make([]byte, CommandBytesMax)}}}}}
	if _, err := nodes[0].c.ProposeWait(ctx, big); wire.CodeOf(err) != wire.Code_FRAME_TOO_LARGE {
		t.Errorf("too large: %v", err)
	}
	if res, err := nodes[0].c.ProposeWait(ctx); err != nil || len(res) != 0 {
		t.Errorf("nothing: %v %v", res, err)
	}
	nodes[0].close()
}

// TestLeaderKilledMidLoad kills the leader twice under load from all nodes. Each
// proposal's done must be called once, each write of a survivor be definite, and
// each counter be exact.
func TestLeaderKilledMidLoad(t *testing.T) {
	nodes := newCluster(t, 3, nil)
	var addrs []string
	for _, n := range nodes {
		addrs = append(addrs, n.addr)
	}
	w := register(t, nodes[0], "worker")
	for round := range 2 {
		leader, others := leaderOf(t, nodes)
		load := startLoad(t, w, others, fmt.Sprintf("r%d", round))
		load.reach(200)
		leader.kill()
		load.reach(load.settled.Load() + 200)
		leader.mustOpen(3, addrs...)
		waitReady(t, leader)
		load.reach(load.settled.Load() + 200)
		load.stopAndCheck()
		sameState(t, nodes)
	}
}

// load writes counters through nodes that survive.
type load struct {
	t       *testing.T
	w       *testWorker
	stop    chan struct{}
	wg      sync.WaitGroup
	settled atomic.Int64
	counts  sync.Map // session → counter
	nodes   []*testNode
}

const sessionsPerNode = 8

func startLoad(t *testing.T, w *testWorker, nodes []*testNode, prefix string) *load {
	l := &load{t: t, w: w, stop: make(chan struct{}), nodes: nodes}
	for _, n := range nodes {
		for i := range sessionsPerNode {
			id := fmt.Sprintf("%s-%s-%d", prefix, n.name, i)
			epoch := w.session(t, n, id)
			l.wg.Go(func() { l.count(n, id, epoch) })
		}
	}
	return l
}

// count raises one session's counter, one proposal at a time.
func (l *load) count(n *testNode, id string, epoch uint64) {
	ctx := testCtx(l.t)
	for seq := uint64(1); ; seq++ {
		var calls atomic.Int32
		done := make(chan struct{})
		n.c.Propose([]*wire.Command{l.w.write(id, epoch, seq)}, func(res []*wire.Result, err error) {
			if calls.Add(1) > 1 {
				l.t.Errorf("%s: done of %d was called again", id, seq)
				return
			}
			if err != nil || len(res) != 1 || res[0].GetCode() != wire.Code_OK {
				l.t.Errorf("%s: write %d: %v %v", id, seq, res, err)
			}
			close(done)
		})
		select {
		case <-done:
		case <-ctx.Done():
			l.t.Errorf("%s: write %d is still open", id, seq)
			return
		}
		l.counts.Store(id, seq)
		l.settled.Add(1)
		select {
		case <-l.stop:
			return
		default:
		}
	}
}

func (l *load) reach(n int64) {
	l.t.Helper()
	eventually(l.t, fmt.Sprintf("%d writes", n), func() bool { return l.settled.Load() >= n || l.t.Failed() })
}

func (l *load) stopAndCheck() {
	l.t.Helper()
	close(l.stop)
	l.wg.Wait()
	for _, n := range l.nodes {
		if err := n.c.Barrier(testCtx(l.t)); err != nil {
			l.t.Fatal(err)
		}
		l.counts.Range(func(id, seq any) bool {
			row := rowOf(n, id.(string))
			if row == nil || string(row.GetState()[0].GetValue()) != fmt.Sprint(seq) || row.GetClients()[0].GetLast() != seq.(uint64) {
				l.t.Errorf("%s has %v for %s, want %d", n.name, row.GetState(), id, seq)
			}
			return true
		})
	}
}

func TestRestartOfAllWithData(t *testing.T) {
	nodes := newCluster(t, 3, nil)
	var addrs []string
	for _, n := range nodes {
		addrs = append(addrs, n.addr)
	}
	w := register(t, nodes[1], "worker")
	epoch := w.session(t, nodes[1], "s")
	if _, err := nodes[1].c.ProposeWait(testCtx(t), w.write("s", epoch, 1)); err != nil {
		t.Fatal(err)
	}
	// What counts is the committed time: a leader's own runs ahead of it, and
	// what it had not committed is gone with its term.
	cluster, before := nodes[0].c.ClusterID(), uint64(0)
	nodes[0].c.FSM().View(func(st *store.Store) { before = st.TimeUS() })
	if err := nodes[0].c.Snapshot(); err != nil {
		t.Fatal(err)
	}
	if err := nodes[0].c.Snapshot(); err != nil {
		t.Errorf("a snapshot of nothing new: %v", err)
	}
	closeAll(nodes)
	for _, n := range nodes {
		n.mustOpen(3, addrs...)
		if !bytes.Equal(n.c.ClusterID(), cluster) {
			t.Errorf("%s: cluster %x right after its start, want %x", n.name, n.c.ClusterID(), cluster)
		}
	}
	waitReady(t, nodes...)
	for _, n := range nodes {
		if err := n.c.Barrier(testCtx(t)); err != nil {
			t.Fatal(err)
		}
		if row := rowOf(n, "s"); row == nil || string(row.GetState()[0].GetValue()) != "1" {
			t.Errorf("%s: %v", n.name, row)
		}
		if now := n.c.LogTimeUS(); now < before {
			t.Errorf("%s: log time went back, from %d to %d", n.name, before, now)
		}
	}
	res, err := nodes[2].c.ProposeWait(testCtx(t), w.write("s", epoch, 2))
	if err != nil || res[0].GetCode() != wire.Code_OK {
		t.Errorf("%v %v", res, err)
	}
	sameState(t, nodes)
}

// TestWipedNodeJoins: a node that lost its disk comes back as a new one, joins
// the live cluster and does not form another.
func TestWipedNodeJoins(t *testing.T) {
	nodes := newCluster(t, 3, nil)
	var addrs []string
	for _, n := range nodes {
		addrs = append(addrs, n.addr)
	}
	cluster := nodes[0].c.ClusterID()
	_, others := leaderOf(t, nodes)
	wiped := others[0]
	was := wiped.id.ID
	wiped.close()
	if err := os.RemoveAll(wiped.dir); err != nil {
		t.Fatal(err)
	}
	wiped.mustOpen(3, addrs...)
	waitReady(t, wiped)
	if wiped.id.ID == was {
		t.Error("a wiped node kept its id")
	}
	if !bytes.Equal(wiped.c.ClusterID(), cluster) {
		t.Errorf("the wiped node is in cluster %x, want %x", wiped.c.ClusterID(), cluster)
	}
	eventually(t, "it votes in its former place", func() bool {
		servers := wiped.c.Servers()
		return len(servers) == 3 && !slices.ContainsFunc(servers, func(s Server) bool { return s.ID == was || !s.Voter })
	})
	sameState(t, nodes)
}

// TestWipedNodeWaitsWithoutQuorum: alone beside the silent rest of its cluster,
// an empty node forms nothing.
func TestWipedNodeWaitsWithoutQuorum(t *testing.T) {
	nodes := newCluster(t, 3, nil)
	var addrs []string
	for _, n := range nodes {
		addrs = append(addrs, n.addr)
	}
	closeAll(nodes)
	if err := os.RemoveAll(nodes[0].dir); err != nil {
		t.Fatal(err)
	}
	nodes[0].mustOpen(3, addrs...)
	eventually(t, "it has looked around", func() bool { return nodes[0].c.settled.last() != nil })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := nodes[0].c.WaitReady(ctx)
	if !errors.Is(err, context.Canceled) || wire.CodeOf(err) != wire.Code_UNAVAILABLE {
		t.Errorf("%v", err)
	}
	if got := nodes[0].c.Servers(); len(got) != 0 {
		t.Errorf("it has servers: %v", got)
	}
}

func TestFurtherNodesFollow(t *testing.T) {
	nodes := newCluster(t, 3, nil)
	extra := newTestNode(t, "n4")
	t.Cleanup(extra.close)
	extra.mustOpen(0, nodes[1].addr)
	waitReady(t, extra)
	for _, s := range extra.c.Servers() {
		if s.Voter == (s.ID == extra.id.ID) {
			t.Errorf("%v", s)
		}
	}
	res, err := extra.c.ProposeWait(testCtx(t), tick())
	if err != nil || res[0].GetCode() != wire.Code_OK {
		t.Errorf("%v %v", res, err)
	}
	sameState(t, append(nodes, extra))
}

func TestNameInUse(t *testing.T) {
	nodes := newCluster(t, 1, nil)
	second := newTestNode(t, "n1")
	t.Cleanup(second.close)
	second.mustOpen(0, nodes[0].addr)
	eventually(t, "a refusal", func() bool { return wire.CodeOf(second.c.settled.last()) == wire.Code_NAME_IN_USE })
	if len(nodes[0].c.Servers()) != 1 {
		t.Errorf("%v", nodes[0].c.Servers())
	}
}

// TestDeadNameIsReplaced: a new node takes the name of one that gossip knows to
// be dead, and its place among the servers.
func TestDeadNameIsReplaced(t *testing.T) {
	var dead atomic.Value
	dead.Store("")
	nodes := newCluster(t, 3, func(c *Config) {
		c.Alive = func(id string) (bool, bool) { return id != dead.Load(), true }
	})
	for _, n := range nodes {
		if _, err := n.c.ProposeWait(testCtx(t), &wire.Command{Kind: &wire.Command_RegisterWorker{RegisterWorker: &wire.RegisterWorker{
			Id: n.id.ID, Name: n.name, Nonce: []byte("0123456789abcdef"), Endpoint: &wire.Endpoint{Host: "127.0.0.1"},
		}}}); err != nil {
			t.Fatal(err)
		}
	}
	_, others := leaderOf(t, nodes)
	victim := others[0]
	victim.close()
	dead.Store(victim.id.ID)
	heir := newTestNode(t, victim.name)
	t.Cleanup(heir.close)
	heir.mustOpen(0, others[1].addr)
	waitReady(t, heir)
	eventually(t, "it votes in the victim's place", func() bool {
		got := heir.c.Servers()
		return len(got) == 3 && !slices.ContainsFunc(got, func(s Server) bool { return s.ID == victim.id.ID || !s.Voter })
	})
}

// TestAddressChange: a server that comes back at another address is found.
func TestAddressChange(t *testing.T) {
	nodes := newCluster(t, 3, nil)
	_, others := leaderOf(t, nodes)
	n := others[0]
	n.close()
	n.listen("127.0.0.1:0")
	n.mustOpen(3, others[1].addr)
	waitReady(t, n)
	sameState(t, nodes)
}

func TestWhileLeaderAndTransfer(t *testing.T) {
	var leading atomic.Int32
	var most atomic.Int32
	nodes := newCluster(t, 3, func(c *Config) {
		steady(c)
		c.Lead = func(ctx context.Context) {
			if n := leading.Add(1); n > most.Load() {
				most.Store(n)
			}
			<-ctx.Done()
			leading.Add(-1)
		}
	})
	leader, others := leaderOf(t, nodes)
	for _, n := range others {
		if err := n.c.TransferLeadership(testCtx(t)); wire.CodeOf(err) != wire.Code_NOT_LEADER {
			t.Errorf("%s: %v", n.name, err)
		}
	}
	ran := make(chan struct{}, 2)
	leader.c.WhileLeader(func(context.Context) { ran <- struct{}{} })
	<-ran
	if err := leader.c.TransferLeadership(testCtx(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another leads", func() bool { l, _ := leaderOf(t, nodes); return l != leader })
	eventually(t, "one of them runs Lead", func() bool { return leading.Load() == 1 })
	before := leader.c.LogTimeUS()
	if res, err := leader.c.ProposeWait(testCtx(t), tick()); err != nil || res[0].GetCode() != wire.Code_OK {
		t.Errorf("%v %v", res, err)
	}
	if err := leader.c.Barrier(testCtx(t)); err != nil || leader.c.LogTimeUS() < before {
		t.Errorf("%v; log time %d, before %d", err, leader.c.LogTimeUS(), before)
	}
	closeAll(nodes)
	if leading.Load() != 0 {
		t.Error("Lead outlived Close")
	}
}

// TestLogTimeStandsStill: while a cluster is down its log time does not go on.
func TestLogTimeIsElapsedTime(t *testing.T) {
	nodes := newCluster(t, 1, nil)
	n := nodes[0]
	if _, err := n.c.ProposeWait(testCtx(t), tick()); err != nil {
		t.Fatal(err)
	}
	n.close()
	// The next process's clock begins at another figure altogether.
	n.clock = &offsetClock{by: 1000 * testTime}
	n.edit = func(c *Config) { c.Clock = n.clock }
	n.mustOpen(1)
	waitReady(t, n)
	if _, err := n.c.ProposeWait(testCtx(t), tick()); err != nil {
		t.Fatal(err)
	}
	var us uint64
	n.c.FSM().View(func(s *store.Store) { us = s.TimeUS() })
	if us >= uint64(testTime.Microseconds()) {
		t.Errorf("log time %d µs took a clock's figure for elapsed time", us)
	}
}

func TestCloseSettlesEverything(t *testing.T) {
	nodes := newCluster(t, 3, nil)
	_, others := leaderOf(t, nodes)
	// Two of three are gone: nothing can commit any more.
	var left *testNode
	for _, n := range nodes {
		if n == others[0] {
			left = n
		} else {
			n.close()
		}
	}
	var wg sync.WaitGroup
	for range 10 {
		wg.Add(1)
		left.c.Propose([]*wire.Command{tick()}, func(res []*wire.Result, err error) {
			defer wg.Done()
			if res != nil || wire.CodeOf(err) != wire.Code_SHUTTING_DOWN {
				t.Errorf("%v %v", res, err)
			}
		})
	}
	c := left.c
	left.close()
	wg.Wait()
	wg.Add(1)
	c.Propose([]*wire.Command{tick()}, func(_ []*wire.Result, err error) {
		defer wg.Done()
		if wire.CodeOf(err) != wire.Code_SHUTTING_DOWN {
			t.Errorf("after Close: %v", err)
		}
	})
	wg.Wait()
	if err := c.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	if err := c.Barrier(t.Context()); wire.CodeOf(err) != wire.Code_SHUTTING_DOWN {
		t.Errorf("Barrier after Close: %v", err)
	}
}

func TestLostLogIsRefused(t *testing.T) {
	nodes := newCluster(t, 1, nil)
	n := nodes[0]
	eventually(t, "it is a member", func() bool { return n.c.record.member() })
	n.close()
	if err := os.RemoveAll(filepath.Join(n.dir, walDir)); err != nil {
		t.Fatal(err)
	}
	if err := n.open(1); wire.CodeOf(err) != wire.Code_INTERNAL {
		t.Errorf("%v", err)
	}
}

// TestFollowersLearnOfWhatTheyAwait: raft tells its followers of a commit with
// the next entry, and otherwise, here, never.
func TestFollowersLearnOfWhatTheyAwait(t *testing.T) {
	nodes := make([]*testNode, 3)
	var addrs []string
	for i := range nodes {
		nodes[i] = newTestNode(t, fmt.Sprintf("n%d", i+1))
		nodes[i].edit = func(c *Config) {
			steady(c)
			c.Timings.Commit, c.Timings.Pilot = time.Hour, time.Hour
		}
		addrs = append(addrs, nodes[i].addr)
	}
	for _, n := range nodes {
		n.mustOpen(3, addrs...)
	}
	t.Cleanup(func() { closeAll(nodes) })
	leader, others := leaderOf(t, nodes)
	for _, n := range others {
		eventually(t, "the follower is ready", func() bool {
			_, err := leader.c.ProposeWait(testCtx(t), tick())
			return err == nil && len(n.c.ClusterID()) > 0
		})
	}
	register(t, leader, "worker")
	for _, n := range others {
		eventually(t, "the follower has the worker", func() bool {
			found := false
			n.c.FSM().View(func(s *store.Store) { found = s.Worker("worker") != nil })
			return found
		})
		// Its own barrier.
		if err := n.c.Barrier(testCtx(t)); err != nil {
			t.Fatal(err)
		}
	}
	// A change of the voters.
	if err := leader.c.change(testCtx(t), func() raft.Future {
		return leader.c.raft.DemoteVoter(raft.ServerID(others[0].id.ID), 0, 0)
	}); err != nil {
		t.Fatal(err)
	}
	for _, n := range others {
		eventually(t, "the follower counts two voters", func() bool { return len(n.c.VoterConfigs().Applied.Voters) == 2 })
	}
}

// TestAddressChangeOfTheLast: a node that has nobody to ask to notes its new address
// itself.
func TestAddressChangeOfTheLast(t *testing.T) {
	n := newCluster(t, 1, nil)[0]
	n.close()
	n.listen("127.0.0.1:0")
	n.mustOpen(1)
	waitReady(t, n)
	if s := n.c.Servers(); len(s) != 1 || s[0].Addr != n.addr || !s[0].Voter {
		t.Errorf("%+v, want a voter at %s", s, n.addr)
	}
}

// TestTrimIsNoRollback: what was in the log at the start is still to be applied when its
// beginning is trimmed.
func TestTrimIsNoRollback(t *testing.T) {
	n := newCluster(t, 1, nil)[0]
	for range 5 {
		if _, err := n.c.ProposeWait(testCtx(t), tick()); err != nil {
			t.Fatal(err)
		}
	}
	last, err := n.c.log.LastIndex()
	must(t, err)
	n.c.log.former.Store(last)
	must(t, n.c.log.DeleteRange(1, 2))
	if got := n.c.log.former.Load(); got != last {
		t.Errorf("%d after a trim, %d before", got, last)
	}
	must(t, n.c.log.DeleteRange(last, last))
	if got := n.c.log.former.Load(); got != last-1 {
		t.Errorf("%d after entry %d was taken back", got, last)
	}
}
