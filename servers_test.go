package baton_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/baton-cluster/baton"
)

// TestWipedNodeTakesItsPlaceAgain: a node without its data joins as a new server in
// the place of the former one, of which nothing stays on record.
func TestWipedNodeTakesItsPlaceAgain(t *testing.T) {
	c := startCluster(t, nil)
	ctx := testContext(t)
	s, err := c.client().Open(ctx, baton.OpenOptions{ID: "erin"})
	must(t, err)
	_, err = s.Put(ctx, "k", []byte("v"))
	must(t, err)
	gone := c.ownerIndex(s)
	former := c.nodes[gone].ID()
	must(t, c.nodes[gone].Close())
	must(t, os.RemoveAll(filepath.Join(c.dir, c.name(gone))))
	must(t, c.open(gone))
	if c.nodes[gone].ID() == former {
		t.Fatal("its id is used again")
	}
	for admin := c.admin(); ; {
		st, err := admin.Status(ctx)
		voters := 0
		for _, n := range st.Nodes {
			if n.Voter {
				voters++
			}
		}
		if err == nil && st.Healthy && len(st.Nodes) == 3 && voters == 3 {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("not whole again: %+v, %v", st.Nodes, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	v, err := s.Get(ctx, "k")
	must(t, err)
	if string(v.Value) != "v" {
		t.Fatalf("read %q", v.Value)
	}
	verdict := c.verify(ctx)
	if !verdict.OK || len(verdict.Hashes) != 3 {
		t.Fatalf("verify: %+v", verdict)
	}
}
