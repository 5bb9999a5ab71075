package baton_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/baton-cluster/baton"
	"github.com/baton-cluster/baton/wire"
)

// await polls until ok, for what follows from something that is done already.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(testTime); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not in the end: %s", what)
}

// carrying is the connection of a node that carries a session.
func carrying(t testing.TB, n *baton.Node, session string) (found baton.ConnectionInfo) {
	t.Helper()
	await(t, session+" is on a connection of "+n.Name(), func() bool {
		for _, c := range n.Connections() {
			if slices.Contains(c.Sessions, session) {
				found = c
				return true
			}
		}
		return false
	})
	return found
}

// direct moves a session away from a node and back until its client is connected to
// that node itself: a dial that takes too long is given up, and the way is a relay's.
func (c *testCluster) direct(ctx context.Context, session string, away, node int) {
	c.t.Helper()
	for carrying(c.t, c.nodes[node], session).Relay {
		must(c.t, c.migrate(ctx, session, c.name(away)))
		must(c.t, c.migrate(ctx, session, c.name(node)))
	}
}

// TestSessionsOfOneConnectionPart: the sessions of one connection move to
// different nodes at once, under calls; then all of one connection move together;
// and when the client goes, nothing of it is left behind.
func TestSessionsOfOneConnectionPart(t *testing.T) {
	c := startCluster(t, nil)
	ctx := testContext(t)
	client := c.client()
	var sessions []*baton.Session
	var ids []string
	for i := range 6 {
		s, err := client.Open(ctx, baton.OpenOptions{ID: fmt.Sprint("s", i), Node: "n1"})
		must(t, err)
		sessions, ids = append(sessions, s), append(ids, s.ID())
	}
	first := carrying(t, c.nodes[0], "s0")
	if !slices.Equal(first.Sessions, ids) || first.Remote == "" || first.BytesReceived == 0 {
		t.Fatalf("%+v", first)
	}
	stop, lanes := make(chan struct{}), make(chan error, len(sessions))
	acked := make([]int, len(sessions))
	for i, s := range sessions {
		go func() { lanes <- callUntil(ctx, s, stop, &acked[i]) }()
	}
	var g errgroup.Group
	for i := range sessions {
		g.Go(func() error { return c.migrate(ctx, ids[i], c.name(1+i%2)) })
	}
	must(t, g.Wait())
	for i := range sessions {
		c.direct(ctx, ids[i], 0, 1+i%2)
	}
	for i := range sessions {
		await(t, "three are on one connection with "+ids[i], func() bool {
			return len(carrying(t, c.nodes[1+i%2], ids[i]).Sessions) == 3
		})
	}
	// Those on n2 go on to n3, as one connection.
	conn := carrying(t, c.nodes[1], "s0")
	list, err := c.nodes[1].MigrateConnection(ctx, conn.ID, "n3")
	for _, m := range list {
		switch {
		case m.Code == wire.Code_UNAVAILABLE.Label(): // the leader went: it may have moved or not
			must(t, c.arrive(ctx, m.Session, "n3", true))
		case m.State != "Completed" || m.To != "n3":
			t.Errorf("%+v, %v", m, err)
		}
	}
	if len(list) != 3 {
		t.Errorf("moved %+v, %v", list, err)
	}
	await(t, "n3 tells of the connection with s0", func() bool { // who is slow to answer is left out
		all, err := c.admin().Connections(ctx, baton.ConnectionFilter{Session: "s0"})
		return err == nil && len(all) > 0 && all[len(all)-1].Node == "n3"
	})
	close(stop)
	for range sessions {
		must(t, <-lanes)
	}
	for i, s := range sessions {
		if v, err := s.Get(ctx, "n"); err != nil || string(v.Value) != fmt.Sprint(acked[i]) || v.Owner != "n3" {
			t.Errorf("%s: %s after %d calls, at %s, %v", s.ID(), v.Value, acked[i], v.Owner, err)
		}
	}
	must(t, client.Close())
	for _, n := range c.nodes {
		await(t, "no connection is left on "+n.Name(), func() bool {
			st := n.UserConns()
			return st.Open == 0 && st.Sessions == 0
		})
	}
}

// A move of a connection tells of each session by itself.
func TestConnectionMovesInPart(t *testing.T) {
	c := startCluster(t, nil)
	ctx := testContext(t)
	client := c.client()
	for i, node := range []string{"n1", "n1"} {
		_, err := client.Open(ctx, baton.OpenOptions{ID: fmt.Sprint("s", i), Node: node})
		must(t, err)
	}
	conn := carrying(t, c.nodes[0], "s1")
	must(t, c.migrate(ctx, "s0", "n2"))
	must(t, c.migrate(ctx, "s0", "n1"))
	a := c.admin()
	// To where they are: every move is refused, with its reason.
	list, err := a.MigrateConnection(ctx, "n1", conn.ID, baton.MigrateRequest{To: "n1"})
	if len(list) != 2 || list[0].Code != "same_node" || list[1].State != "Failed" || baton.CodeOf(err).Label() != "same_node" {
		t.Errorf("%+v, %v", list, err)
	}
	var typed *baton.Error
	if _, err := a.MigrateConnection(ctx, "n2", 1<<40, baton.MigrateRequest{To: "n1"}); !errors.As(err, &typed) || typed.Code.Label() != "bad_request" {
		t.Errorf("a connection that is not there: %v", err)
	}
	if _, err := a.Connections(context.WithoutCancel(ctx), baton.ConnectionFilter{Node: "n9"}); baton.CodeOf(err).Label() != "unknown_worker" {
		t.Errorf("a node that is not there: %v", err)
	}
}
