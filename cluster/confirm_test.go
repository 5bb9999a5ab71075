package cluster

import (
	"bytes"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/fsm"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

func (w *testWorker) marker() *wire.Command {
	return &wire.Command{Kind: &wire.Command_ReadMarker{ReadMarker: &wire.ReadMarker{Owner: w.owner}}}
}

func (w *testWorker) fence(n *testNode) *wire.Command {
	config, _ := n.c.VoterConfig()
	return &wire.Command{Kind: &wire.Command_FenceWorker{FenceWorker: &wire.FenceWorker{
		Id: w.owner.GetWorker(), Incarnation: w.owner.GetIncarnation(), Reason: "dead", VoterConfig: config,
	}}}
}

func mustPropose(t *testing.T, n *testNode, cmd *wire.Command) *wire.Result {
	t.Helper()
	res, err := n.c.ProposeWait(testCtx(t), cmd)
	if err != nil {
		t.Fatal(err)
	}
	return res[0]
}

// Markers of leader and followers add nothing to the log, and tell of the latest
// command; after a fence they are refused.
func TestMarkersTakeNoEntry(t *testing.T) {
	nodes := newCluster(t, 3, nil)
	w := register(t, nodes[0], "w")
	for _, n := range nodes {
		// Now and then the leader changes on a busy machine, or a call is cut, and a
		// marker goes through the log.
		eventually(t, "a marker of "+n.name+" takes no entry", func() bool {
			before := mustPropose(t, n, tick()).GetPosition()
			res := mustPropose(t, n, w.marker())
			if res.GetCode() != wire.Code_OK {
				t.Fatalf("%s: %v", n.name, res)
			}
			return res.GetPosition() == before
		})
	}
	if res := mustPropose(t, nodes[0], w.fence(nodes[0])); res.GetCode() != wire.Code_OK {
		t.Fatal(res)
	}
	for _, n := range nodes {
		if res := mustPropose(t, n, w.marker()); res.GetCode() != wire.Code_STALE_INCARNATION {
			t.Errorf("%s, after the fence: %v", n.name, res)
		}
	}
}

// A leader that was deposed and does not know it, as it was paused or its notices
// come late, confirms nothing: not by itself, and not for a server that is in the
// later term.
func TestDeposedLeaderConfirmsNothing(t *testing.T) {
	nodes := newCluster(t, 3, nil)
	w := register(t, nodes[0], "w")
	var old *testNode
	var others []*testNode
	var reign *reign
	eventually(t, "a leader confirms", func() bool {
		old, others = leaderOf(t, nodes)
		reign = old.c.current()
		return old.c.judge(testCtx(t), reign, w.marker().GetReadMarker(), "", 0).GetCode() == wire.Code_OK && reign != nil
	})
	old.c.stream.mute(true)
	defer old.c.stream.mute(false)
	if res := mustPropose(t, others[0], w.fence(others[0])); res.GetCode() != wire.Code_OK {
		t.Fatal(res)
	}
	for _, asker := range []*testNode{old, others[0], others[1]} {
		res := old.c.judge(testCtx(t), reign, w.marker().GetReadMarker(), asker.id.ID, asker.c.raft.CurrentTerm())
		if res != nil {
			t.Errorf("for %s the old leader says %v", asker.name, res)
		}
	}
}

// A leader whose state machine lags behind what it has committed leaves the
// marker to the log: the fence may be among what is missing.
func TestLaggingStateConfirmsNothing(t *testing.T) {
	nodes := newCluster(t, 3, nil)
	w := register(t, nodes[0], "w")
	leader, _ := leaderOf(t, nodes)
	held, release := make(chan struct{}, 1), make(chan struct{})
	leader.c.FSM().Subscribe(func(uint64, []store.Event) {
		select {
		case held <- struct{}{}:
			<-release
		default:
		}
	})
	answers := make(chan *wire.Result, 2)
	propose := func(cmd *wire.Command) (data []byte) {
		data, err := fsm.EncodeEntry(&wire.Entry{Commands: []*wire.Command{cmd}})
		if err != nil {
			t.Fatal(err)
		}
		future := leader.c.raft.Apply(data, 0)
		go func() {
			if future.Error() != nil {
				answers <- nil
				return
			}
			answers <- future.Response().([]*wire.Result)[0]
		}()
		return data
	}
	propose(tick()) // its subscriber holds the state machine
	eventually(t, "the state machine is held", func() bool { return len(held) == 1 })
	fence := propose(w.fence(leader))
	eventually(t, "the fence is committed", func() bool {
		for i := leader.c.raft.CommitIndex(); i > 0; i-- {
			var e raft.Log
			if leader.c.log.GetLog(i, &e) == nil && bytes.Equal(e.Data, fence) {
				return true
			}
		}
		return false
	})
	if res := leader.c.judge(testCtx(t), leader.c.current(), w.marker().GetReadMarker(), "", 0); res != nil {
		t.Errorf("a state machine that lacks the fence says %v", res)
	}
	close(release)
	<-answers
	<-answers
}

// Whoever asks counts for the majority only as a voter in the leader's term.
func TestMajorityIsOfVoters(t *testing.T) {
	nodes := newCluster(t, 3, nil)
	leader, others := leaderOf(t, nodes)
	voter := others[0].id.ID
	for _, n := range others {
		n.kill() // nobody can be asked
	}
	ask := func(asker string, ahead uint64) bool {
		term := leader.c.raft.CurrentTerm()
		return leader.c.undisputed(testCtx(t), term, asker, term+ahead)
	}
	if !ask(voter, 0) {
		t.Error("a voter in the same term does not count")
	}
	if ask(voter, 1) {
		t.Error("a voter of another term counts")
	}
	if ask(leader.id.ID, 0) || ask("stranger", 0) || ask("", 0) {
		t.Error("one that is no other voter counts")
	}
}
