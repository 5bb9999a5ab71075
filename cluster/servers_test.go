package cluster

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// rumour is gossip as a test tells it: everybody is alive but those named.
type rumour struct {
	mu   sync.Mutex
	dead map[string]bool
}

func (r *rumour) alive(id string) (alive, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.dead[id], true
}

func (r *rumour) set(id string, dead bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dead == nil {
		r.dead = map[string]bool{}
	}
	r.dead[id] = dead
}

// votes says who votes, by name, in the leader's configuration.
func votes(t *testing.T, nodes []*testNode) map[string]bool {
	t.Helper()
	leader, _ := leaderOf(t, nodes)
	out := map[string]bool{}
	for _, s := range leader.c.Servers() {
		for _, n := range nodes {
			if n.id.ID == s.ID {
				out[n.name] = s.Voter
			}
		}
	}
	return out
}

func voting(t *testing.T, nodes []*testNode) []string {
	t.Helper()
	v := votes(t, nodes)
	maps.DeleteFunc(v, func(_ string, v bool) bool { return !v })
	return slices.Sorted(maps.Keys(v))
}

// withSpare is three voters and a node that follows.
func withSpare(t *testing.T, r *rumour, edit func(*Config)) (nodes []*testNode, spare *testNode) {
	t.Helper()
	all := func(c *Config) {
		c.Alive, c.ReplaceAfter = r.alive, -1
		if edit != nil {
			edit(c)
		}
	}
	nodes = newCluster(t, 3, all)
	spare = newTestNode(t, "spare")
	spare.edit = all
	t.Cleanup(spare.close)
	spare.mustOpen(0, nodes[0].addr)
	waitReady(t, spare)
	return nodes, spare
}

// awaitLooks waits until the autopilot has looked at a state of things several times,
// whoever leads meanwhile.
func awaitLooks(t *testing.T, nodes []*testNode) {
	t.Helper()
	looks := func() (sum uint64) {
		for _, n := range nodes {
			if n.c != nil {
				sum += n.c.pilotLooks.Load()
			}
		}
		return sum
	}
	before := looks()
	eventually(t, "some looks", func() bool { return looks() > before+20 })
}

// TestJoinersLearnBeforeTheyVote grows a cluster of one. Each newcomer is seen to
// follow, and votes once it has what there is.
func TestJoinersLearnBeforeTheyVote(t *testing.T) {
	nodes := newCluster(t, 1, nil)
	for range 200 {
		if _, err := nodes[0].c.ProposeWait(testCtx(t), tick()); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"second", "third"} {
		n := newTestNode(t, name)
		t.Cleanup(n.close)
		n.mustOpen(0, nodes[0].addr)
		nodes = append(nodes, n)
	}
	eventually(t, "three voters", func() bool { return len(voting(t, nodes)) == 3 })
	sameState(t, nodes) // the others have heard of it
	for _, n := range nodes[1:] {
		var first []string
		for i := uint64(1); i <= nodes[0].c.raft.LastIndex() && first == nil; i++ {
			first = n.c.log.configurationWith(t, i, n.id.ID)
		}
		if len(first) == 0 || slices.Contains(first, n.id.ID) {
			t.Errorf("%s voted as soon as it joined: %v", n.name, first)
		}
	}
}

// TestReplaceVoter moves a vote under load: the live voter's, then a dead one's.
func TestReplaceVoter(t *testing.T) {
	var r rumour
	nodes, spare := withSpare(t, &r, steady)
	w := register(t, nodes[0], "worker")
	ctx := testCtx(t)
	all := append(slices.Clone(nodes), spare)
	leader, others := leaderOf(t, nodes)
	load := startLoad(t, w, []*testNode{leader}, "l")
	load.reach(50)
	heir, err := leader.c.Replace(ctx, others[0].id.ID, "")
	if err != nil || heir != spare.id.ID {
		t.Fatalf("%s, %v", heir, err)
	}
	if v := votes(t, all); v[others[0].name] || !v["spare"] || len(voting(t, all)) != 3 {
		t.Errorf("%v", v)
	}
	load.reach(load.settled.Load() + 50)
	// Now it is the spare. One of the voters dies.
	dead := others[1]
	r.set(dead.id.ID, true)
	dead.close()
	if heir, err = leader.c.Replace(ctx, dead.id.ID, others[0].id.ID); err != nil || heir != others[0].id.ID {
		t.Fatalf("%s, %v", heir, err)
	}
	if err := leader.c.Remove(ctx, dead.id.ID, false); err != nil {
		t.Fatal(err)
	}
	if v := votes(t, all); len(v) != 3 || len(voting(t, all)) != 3 {
		t.Errorf("%v", v)
	}
	load.reach(load.settled.Load() + 50)
	load.stopAndCheck()
	sameState(t, []*testNode{leader, others[0], spare})
}

// TestChangesThatAreRefused: none may cost the quorum, take the leader's vote, or
// come beside another.
func TestChangesThatAreRefused(t *testing.T) {
	var r rumour
	nodes, spare := withSpare(t, &r, func(c *Config) {
		steady(c)
		c.Voter = c.Name != "spare"
	})
	leader, others := leaderOf(t, nodes)
	ctx := testCtx(t)
	check := func(what string, err error, want wire.Code) {
		t.Helper()
		if wire.CodeOf(err) != want {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	before := votes(t, append(nodes, spare))
	check("promote one that does not want to", leader.c.Promote(ctx, spare.id.ID), wire.Code_BAD_REQUEST)
	check("promote a stranger", leader.c.Promote(ctx, "nobody"), wire.Code_UNKNOWN_SERVER)
	check("promote a voter", leader.c.Promote(ctx, others[0].id.ID), wire.Code_OK)
	check("demote a follower", leader.c.Demote(ctx, spare.id.ID), wire.Code_OK)
	check("demote the leader", leader.c.Demote(ctx, leader.id.ID), wire.Code_BAD_REQUEST)
	check("remove the leader", leader.c.Remove(ctx, leader.id.ID, true), wire.Code_BAD_REQUEST)
	check("remove one that runs", leader.c.Remove(ctx, others[0].id.ID, false), wire.Code_BAD_REQUEST)
	check("remove a stranger", leader.c.Remove(ctx, "nobody", false), wire.Code_OK)
	check("on a follower", others[0].c.Promote(ctx, spare.id.ID), wire.Code_NOT_LEADER)
	_, err := leader.c.Replace(ctx, others[0].id.ID, "")
	check("replace without a spare", err, wire.Code_NO_TARGET)
	_, err = leader.c.Replace(ctx, leader.id.ID, "")
	check("replace the leader", err, wire.Code_BAD_REQUEST)
	_, err = leader.c.Replace(ctx, spare.id.ID, "")
	check("replace a follower", err, wire.Code_BAD_REQUEST)
	_, err = leader.c.Replace(ctx, others[0].id.ID, others[1].id.ID)
	check("replace by a voter", err, wire.Code_BAD_REQUEST)

	leader.c.joining.Lock()
	check("beside another change", leader.c.Demote(ctx, others[0].id.ID), wire.Code_CHANGE_UNDER_WAY)
	leader.c.joining.Unlock()

	// One of three is dead, so the other may not go.
	r.set(others[0].id.ID, true)
	check("demote the last but one", leader.c.Demote(ctx, others[1].id.ID), wire.Code_QUORUM_AT_RISK)
	check("leave as the last but one", leader.c.Remove(ctx, others[1].id.ID, true), wire.Code_QUORUM_AT_RISK)
	if after := votes(t, append(nodes, spare)); !maps.Equal(before, after) {
		t.Errorf("a refused change changed %v to %v", before, after)
	}
	check("demote the dead one", leader.c.Demote(ctx, others[0].id.ID), wire.Code_OK)
}

// TestAutopilotReplacesTheDead: a voter that has been dead for long enough, and
// does not answer, loses its vote to a spare; when it comes back it follows.
func TestAutopilotReplacesTheDead(t *testing.T) {
	var r rumour
	nodes, spare := withSpare(t, &r, func(c *Config) { c.ReplaceAfter = 50 * time.Millisecond })
	_, others := leaderOf(t, nodes)
	all := append(slices.Clone(nodes), spare)
	// Gossip is wrong: it answers.
	r.set(others[0].id.ID, true)
	awaitLooks(t, nodes)
	if v := votes(t, all); !v[others[0].name] || v["spare"] {
		t.Fatalf("a voter that answers was replaced: %v", v)
	}
	others[0].close()
	var v []string // of one leader, as the next may not know the last change
	eventually(t, "the spare votes", func() bool { v = voting(t, all); return slices.Contains(v, "spare") })
	if len(v) != 3 || slices.Contains(v, others[0].name) {
		t.Errorf("%v vote", v)
	}
	var addrs []string
	for _, n := range nodes {
		addrs = append(addrs, n.addr)
	}
	r.set(others[0].id.ID, false)
	others[0].mustOpen(3, addrs...)
	waitReady(t, others[0])
	if v := votes(t, all); v[others[0].name] || len(v) != 4 {
		t.Errorf("back again: %v", v)
	}
	sameState(t, all)
}

// TestAutopilotNeedsASpare: with two of three dead there is nothing that
// could be done safely; with one dead and no spare neither.
func TestAutopilotNeedsASpare(t *testing.T) {
	var r rumour
	nodes := newCluster(t, 3, func(c *Config) { c.Alive, c.ReplaceAfter = r.alive, time.Millisecond })
	_, others := leaderOf(t, nodes)
	r.set(others[0].id.ID, true)
	others[0].close()
	awaitLooks(t, nodes)
	if v := voting(t, nodes); len(v) != 3 {
		t.Errorf("%v vote", v)
	}
}

// TestIDsAreNotUsedAgain: a server whose log is gone, but not its id, is refused,
// by itself or by the leader; and so is one that has left.
func TestIDsAreNotUsedAgain(t *testing.T) {
	nodes := newCluster(t, 3, nil)
	var addrs []string
	for _, n := range nodes {
		addrs = append(addrs, n.addr)
		register(t, n, n.id.ID)
	}
	_, others := leaderOf(t, nodes)
	victim := others[0]
	victim.close()
	lost := func(files ...string) {
		for _, f := range files {
			if err := os.RemoveAll(filepath.Join(victim.dir, f)); err != nil {
				t.Fatal(err)
			}
		}
	}
	lost(walDir, snapshotDir)
	if err := victim.open(3, addrs...); wire.CodeOf(err) != wire.Code_INTERNAL {
		t.Errorf("without its log: %v", err)
	}
	lost(walDir, snapshotDir, recordFile)
	victim.mustOpen(3, addrs...)
	if err := victim.c.WaitReady(testCtx(t)); wire.CodeOf(err) != wire.Code_ID_USED {
		t.Errorf("without its log and its memory of it: %v", err)
	}
	if last := victim.c.raft.LastIndex(); last != 0 {
		t.Errorf("it took part: its log has %d entries", last)
	}
	if err := victim.c.SetLeft(); err != nil {
		t.Fatal(err)
	}
	victim.close()
	if err := victim.open(3, addrs...); wire.CodeOf(err) != wire.Code_ID_USED {
		t.Errorf("after it left: %v", err)
	}
}
