package main

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/baton-cluster/baton"
)

// count is what the callers of one session were told.
type count struct {
	acked atomic.Int64
	epoch atomic.Uint64 // the highest that any answer was of
}

// TestPausedWorker: a node is stopped past its failover, the leader too, with
// calls on their way to it, and goes on. Its clients are served by others
// meanwhile; what it answers when it wakes is ignored, and what it would write
// refused: every call counts once, no answer is of an earlier epoch or an earlier
// state than one before it. It comes back by itself as a new incarnation.
func TestPausedWorker(t *testing.T) {
	f := testCluster(t)
	for _, who := range []string{"follower", "leader"} {
		var n *fleetNode
		eventually(t, "a "+who, func() bool {
			st, err := f.status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			n = f.node(st.Leader) // none during an election
			if n != nil && who == "follower" {
				n = f.nodes[(slices.Index(f.nodes, n)+1)%fleetSize]
			}
			return n != nil
		})
		f.pauseOwner(t, n)
	}
}

// eventually waits for ok; the limit only ends a test that hangs.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for limit := time.Now().Add(restartTime); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("never: %s", what)
		}
	}
}

func (f *fleet) pauseOwner(t *testing.T, n *fleetNode) {
	before := f.incarnation(t, n.name)
	c, err := baton.Dial(t.Context(), baton.ClientConfig{Addrs: f.users(slices.Index(f.nodes, n)), PKI: f.pki}) // n first: no second dial
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	s, err := c.Open(t.Context(), baton.OpenOptions{ID: "of-" + n.name, Node: n.name})
	if err != nil {
		t.Fatal(err)
	}
	if s.Owner().Name != n.name {
		t.Fatalf("the session is at %s, not at %s", s.Owner().Name, n.name)
	}
	var told count
	ctx, stop := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() { told.call(t, ctx, s) })
		callers.Go(func() { told.read(t, ctx, s) })
	}
	eventually(t, "calls are under way", func() bool { return told.acked.Load() > 20 })
	was := told.epoch.Load()

	if err := n.proc.signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	f.setAway(n.name, true)
	eventually(t, "another node serves the session", func() bool { return told.epoch.Load() > was && s.Owner().Name != n.name })
	if err := n.proc.signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	f.setAway(n.name, false)
	f.awaitNode(t, n.name, "it is back as a new incarnation", func(s baton.NodeStatus) bool {
		return s.Reachable && s.State == "active" && s.Incarnation > before
	})
	more := told.acked.Load() + 20
	eventually(t, "calls go on", func() bool { return told.acked.Load() > more })
	stop()
	callers.Wait()
	v, err := s.Get(t.Context(), "n", baton.Confirmed)
	if err != nil || string(v.Value) != num(told.acked.Load()) {
		t.Errorf("%q in the end, %d were acknowledged (%v)", v.Value, told.acked.Load(), err)
	}
	if s.Epoch() <= was {
		t.Errorf("epoch %d in the end, %d before", s.Epoch(), was)
	}
	if n.proc.ended() {
		t.Errorf("the node has ended: %s", n.proc.tail(5))
	}
	var r result
	eventually(t, "it can ask the others", func() bool { // it has just woken
		r = runBaton(map[string]string{"BATON_ADDR": n.mgmt, "BATON_PKI": f.pki}, "", "verify")
		return r.code != exitNoCluster
	})
	if r.code != exitOK {
		t.Errorf("verify: %s%s", r.stdout, r.stderr)
	}
}

// call adds one again and again. Each call that has begun is waited for.
func (c *count) call(t *testing.T, ctx context.Context, s *baton.Session) {
	for ctx.Err() == nil {
		_, r, err := s.Incr(t.Context(), "n", 1)
		if err != nil {
			t.Errorf("a call failed: %v", err)
			return
		}
		c.acked.Add(1)
		c.saw(r.Epoch)
	}
}

// read looks again and again. What was acknowledged before it began, it sees.
func (c *count) read(t *testing.T, ctx context.Context, s *baton.Session) {
	for ctx.Err() == nil {
		least, epoch := c.acked.Load(), c.epoch.Load()
		v, err := s.Get(t.Context(), "n")
		if err != nil {
			t.Errorf("a read failed: %v", err)
			return
		}
		if got, _ := strconv.ParseInt(string(v.Value), 10, 64); got < least || v.Epoch < epoch {
			t.Errorf("read %d in epoch %d (leased: %v) after %d in epoch %d", got, v.Epoch, v.Leased, least, epoch)
			return
		}
		c.saw(v.Epoch)
	}
}

func (c *count) saw(epoch uint64) {
	for {
		old := c.epoch.Load()
		if epoch <= old || c.epoch.CompareAndSwap(old, epoch) {
			return
		}
	}
}
