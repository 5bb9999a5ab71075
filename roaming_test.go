package baton_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/baton-cluster/baton"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// counter calls Incr without a break and knows what the sum has to be.
type counter struct {
	t    *testing.T
	s    *baton.Session
	n    atomic.Int64
	stop context.CancelFunc
	done chan error
}

func startCounter(t *testing.T, s *baton.Session) *counter {
	ctx, stop := context.WithCancel(testContext(t))
	k := &counter{t: t, s: s, stop: stop, done: make(chan error, 1)}
	go func() {
		for ctx.Err() == nil {
			// The call has a context of its own: one that was given up leaves open
			// whether it counted.
			sum, _, err := s.Incr(context.Background(), "n", 1)
			if want := k.n.Load() + 1; err == nil && sum != want {
				err = fmt.Errorf("sum %d after %d increments", sum, want)
			}
			if err != nil {
				k.done <- err
				return
			}
			k.n.Add(1)
		}
		k.done <- nil
	}()
	return k
}

// passes waits until some more increments were answered.
func (k *counter) passes(more int64) {
	k.t.Helper()
	until := k.n.Load() + more
	deadline := time.After(testTime)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for k.n.Load() < until {
		select {
		case <-tick.C:
		case err := <-k.done:
			k.t.Fatalf("after %d increments: %v", k.n.Load(), err)
		case <-deadline:
			k.t.Fatalf("nothing is answered after %d increments", k.n.Load())
		}
	}
}

// end stops the calls and compares what was answered with what is on record.
func (k *counter) end() {
	k.t.Helper()
	k.stop()
	must(k.t, <-k.done)
	v, err := k.s.Get(testContext(k.t), "n")
	must(k.t, err)
	if string(v.Value) != fmt.Sprint(k.n.Load()) {
		k.t.Fatalf("the sum on record is %s after %d increments", v.Value, k.n.Load())
	}
}

// moveTo migrates a session, again where a try does not come to its end: a client that
// is changing its address may be too slow for one, and a leader that goes does not know
// what becomes of its moves.
func (c *testCluster) moveTo(ctx context.Context, a *baton.Admin, id, node string) {
	c.t.Helper()
	for again := false; ; again = true {
		info, err := a.Migrate(ctx, baton.MigrateRequest{Session: id, To: node})
		switch {
		case err == nil && info.State == "Completed" && info.To == node:
			return
		case again && baton.CodeOf(err) == wire.Code_SAME_NODE: // the last try got there
			return
		case err == nil || ctx.Err() != nil:
			c.t.Fatalf("the session does not get to %s: %+v, %v", node, info, err)
		}
		time.Sleep(5 * time.Millisecond) // the last try may still be under way
	}
}

// TestClientChangesItsAddressInMidMove: the client's source port, and then its
// host too, become others between any two packets of a move, the first to the
// target among them. Calls go on, each counted once.
func TestClientChangesItsAddressInMidMove(t *testing.T) {
	c := startCluster(t, nil)
	ctx := testContext(t)
	box := &nat{}
	client, err := baton.Dial(ctx, baton.ClientConfig{Addrs: c.user[:1], PKI: c.pki, Network: box})
	must(t, err)
	t.Cleanup(func() { _ = client.Close() })
	s, err := client.Open(ctx, baton.OpenOptions{ID: "roamer", Node: "n1"})
	must(t, err)
	admin := c.admin()
	k := startCounter(t, s)
	k.passes(20)

	// The move's first packet to its target is in mid-move by construction.
	box.onSend(func(_ string, first bool) (string, bool) { return "127.0.0.1", first })
	c.moveTo(ctx, admin, "roamer", "n2")
	k.passes(20)
	if box.changes() == 0 {
		t.Fatal("the address did not change in mid-move")
	}
	hosts := []string{"127.0.0.1", "127.0.0.2"}
	for round, after := range []int{1, 2, 4, 7, 11, 16} {
		sent, before := 0, box.changes()
		box.onSend(func(string, bool) (string, bool) {
			sent++
			return hosts[round%2], sent == after
		})
		c.moveTo(ctx, admin, "roamer", c.name((round+2)%3))
		k.passes(20)
		if box.changes() == before {
			t.Fatalf("round %d: the address did not change", round)
		}
	}
	k.end()
	t.Logf("%d increments, %d changes of address, connections: %+v", k.n.Load(), box.changes(), client.Stats())
}

// TestClientBehindOneAddressKeepsItsConnection: a client that can reach one node
// only, and relays through it, has one connection for all its life, whoever owns
// its session, and however the owner changes.
func TestClientBehindOneAddressKeepsItsConnection(t *testing.T) {
	cables := make([]*cable, 3)
	for i := range cables {
		cables[i] = &cable{}
	}
	c := startClusterOn(t, nil, func(i int) seam.Network { return cables[i] })
	ctx := testContext(t)
	box := &nat{only: c.user[0]}
	client, err := baton.Dial(ctx, baton.ClientConfig{Addrs: c.user[:1], PKI: c.pki, Network: box, RelayOnly: true})
	must(t, err)
	t.Cleanup(func() { _ = client.Close() })
	s, err := client.Open(ctx, baton.OpenOptions{ID: "caged"})
	must(t, err)
	admin := c.admin()
	k := startCounter(t, s)
	k.passes(20)
	one := func(when string) {
		t.Helper()
		k.passes(20)
		if st := client.Stats(); st.Full+st.ZeroRTT+st.Fallback != 1 {
			t.Fatalf("%s the client has made other connections: %+v", when, st)
		}
	}
	one("at first")
	c.moveTo(ctx, admin, "caged", "n2")
	one("after a planned move")
	c.moveTo(ctx, admin, "caged", "n3")
	one("after a planned move between others")
	_, err = admin.Drain(ctx, "n3", baton.DrainOptions{}, nil)
	must(t, err)
	one("after a drain")
	must(t, admin.Undrain(ctx, "n3"))
	c.moveTo(ctx, admin, "caged", "n3")
	one("before the crash")
	epoch := s.Epoch()
	cables[2].cut()
	k.passes(20)
	if s.Epoch() == epoch {
		t.Fatal("the cut-off owner still answers")
	}
	one("after the owner's crash")
	k.end()
}

// TestRelayedRouteGoesBackToDirect: where the path to an owner is closed the
// client is relayed to it, and with the next move to an owner that it can reach
// it is served directly again.
func TestRelayedRouteGoesBackToDirect(t *testing.T) {
	c := startCluster(t, nil)
	ctx := testContext(t)
	box := &nat{only: c.user[0]}
	var relayed, direct atomic.Int64
	client, err := baton.Dial(ctx, baton.ClientConfig{Addrs: c.user[:1], PKI: c.pki, Network: box, OnAttempt: func(a baton.Attempt) {
		switch {
		case a.Err == nil && a.Relay:
			relayed.Add(1)
		case a.Err == nil:
			direct.Add(1)
		}
	}})
	must(t, err)
	t.Cleanup(func() { _ = client.Close() })
	s, err := client.Open(ctx, baton.OpenOptions{ID: "half-way", Node: "n1"})
	must(t, err)
	admin := c.admin()
	k := startCounter(t, s)
	k.passes(20)
	c.moveTo(ctx, admin, "half-way", "n2") // out of reach: the move is relayed
	k.passes(20)
	if st := client.Stats(); st.Full+st.ZeroRTT+st.Fallback != 1 {
		t.Fatalf("the client reached a node that is out of reach: %+v", st)
	}
	box.mu.Lock()
	box.only = ""
	box.mu.Unlock()
	c.moveTo(ctx, admin, "half-way", "n3")
	c.direct(ctx, "half-way", 1, 2)
	k.passes(20)
	k.end()
	if st := client.Stats(); st.ZeroRTT+st.WarmFull+st.Fallback == 0 {
		t.Fatalf("the client did not go to the next owner directly: %+v", st)
	}
}
