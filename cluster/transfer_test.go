package cluster

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/wire"
)

// slowFollower is three nodes of which one is down, and another takes no entries
// though it answers: the leader has one that it lacks.
type slowFollower struct {
	t                  *testing.T
	leader, slow, down *testNode
	gate               chan struct{}
}

func newSlowFollower(t *testing.T) *slowFollower {
	disks := map[*testNode]*faultDisk{}
	nodes := make([]*testNode, 3)
	var addrs []string
	for i := range nodes {
		nodes[i] = newTestNode(t, string(rune('a'+i)))
		addrs = append(addrs, nodes[i].addr)
	}
	for _, n := range nodes {
		disk := &faultDisk{}
		disks[n] = disk
		n.edit = func(c *Config) {
			c.Disk = disk
			c.Timings.Stall, c.Timings.Mute, c.Timings.RPC = time.Hour, time.Hour, time.Second
		}
		n.mustOpen(3, addrs...)
	}
	t.Cleanup(func() { closeAll(nodes) })
	waitReady(t, nodes...)
	leader, others := leaderOf(t, nodes)
	s := &slowFollower{t: t, leader: leader, slow: others[0], down: others[1], gate: make(chan struct{})}
	t.Cleanup(s.open)
	s.down.kill()
	disks[s.slow].set(s.gate, nil)
	leader.c.Propose([]*wire.Command{tick()}, func([]*wire.Result, error) {})
	eventually(t, "the entry is in the leader's log", func() bool { return leader.c.raft.LastIndex() > leader.c.raft.CommitIndex() })
	return s
}

// open lets the slow one take entries.
func (s *slowFollower) open() {
	select {
	case <-s.gate:
	default:
		close(s.gate)
	}
}

// TestLeadershipIsOfferedOnceToTheSlow: who has not got the entries that it lacked
// when it was offered leadership is not offered it again.
func TestLeadershipIsOfferedOnceToTheSlow(t *testing.T) {
	s := newSlowFollower(t)
	for i, why := range []string{"transfer timeout", "not the whole log"} {
		err := s.leader.c.TransferLeadership(testCtx(t))
		if wire.CodeOf(err) != wire.Code_UNAVAILABLE || !strings.Contains(err.Error(), why) {
			t.Fatalf("offer %d: %v", i+1, err)
		}
	}
	s.open()
	eventually(t, "it hands leadership on", func() bool { return s.leader.c.TransferLeadership(testCtx(t)) == nil })
}

// TestTrappedLeaderStops: a node whose raft refuses its writes for longer than a
// former leadership can take to be handed on stops.
func TestTrappedLeaderStops(t *testing.T) {
	clock := &offsetClock{}
	c := &Cluster{cfg: Config{Clock: clock, Timings: Timings{RPC: time.Second, Election: time.Second}}}
	r := &reign{}
	for _, err := range []error{raft.ErrLeadershipTransferInProgress, raft.ErrLeadershipLost, raft.ErrLeadershipTransferInProgress} {
		if got := c.untrapped(r, err); !errors.Is(got, err) {
			t.Errorf("%v, want %v", got, err)
		}
	}
	if err := c.fatal.Load(); err != nil {
		t.Fatalf("it has stopped at once: %v", *err)
	}
	clock.by = time.Hour
	_ = c.untrapped(r, raft.ErrLeadershipTransferInProgress)
	if err := c.fatal.Load(); err == nil || wire.CodeOf(*err) != wire.Code_INTERNAL {
		t.Error("it goes on")
	}
}
