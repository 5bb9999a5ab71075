package cluster

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/wire"
)

// TestLeadershipIsOfferedOnceToTheSlow: who has not got the entries that it lacked
// when it was offered leadership is not offered it again. Of three nodes one is
// down, and another takes no entries though it answers.
func TestLeadershipIsOfferedOnceToTheSlow(t *testing.T) {
	nodes, disks := newFaultyCluster(t, func(c *Config) {
		steady(c)
		c.Timings.Stall, c.Timings.Mute, c.Timings.RPC = time.Hour, time.Hour, time.Hour // no answer is too late
	})
	leader, others := leaderOf(t, nodes)
	gate := make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	t.Cleanup(open)
	disks[others[0]].set(gate, nil)
	others[1].kill()
	leader.c.Propose([]*wire.Command{tick()}, func([]*wire.Result, error) {})
	eventually(t, "the entry is in the leader's log", func() bool { return leader.c.raft.LastIndex() > leader.c.raft.CommitIndex() })
	for i, why := range []string{"transfer timeout", "not the whole log"} {
		err := leader.c.TransferLeadership(testCtx(t))
		if wire.CodeOf(err) != wire.Code_UNAVAILABLE || !strings.Contains(err.Error(), why) {
			t.Fatalf("offer %d: %v", i+1, err)
		}
	}
	open()
	eventually(t, "leadership is handed on", func() bool {
		leader, _ := leaderOf(t, nodes)
		return leader.c.TransferLeadership(testCtx(t)) == nil
	})
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
