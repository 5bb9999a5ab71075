package cluster

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/rpcnet"
	"github.com/baton-cluster/baton/wire"
)

func emptyNode(i, expect int) *wire.FindResp {
	return &wire.FindResp{Node: fmt.Sprintf("%016x", i), Name: fmt.Sprint("n", i), Addr: fmt.Sprint("h:", i), Empty: true, Expect: uint32(expect)}
}

func TestFormation(t *testing.T) {
	self := Config{ID: fmt.Sprintf("%016x", 2), Name: "n2", Advertise: "h:2", Expect: 3}
	alone, joiner := self, self
	alone.Expect, joiner.Expect = 1, 0
	for _, c := range []struct {
		name    string
		cfg     Config
		answers []*wire.FindResp
		silent  []string
		want    wire.Code // OK: it forms
	}{
		{"all are here", self, []*wire.FindResp{emptyNode(3, 3), emptyNode(1, 3)}, nil, wire.Code_OK},
		{"one is missing", self, []*wire.FindResp{emptyNode(1, 3)}, []string{"h:3"}, wire.Code_UNAVAILABLE},
		{"one too many", self, []*wire.FindResp{emptyNode(1, 3), emptyNode(3, 3), emptyNode(4, 3)}, nil, wire.Code_BAD_REQUEST},
		{"they expect another number", self, []*wire.FindResp{emptyNode(1, 3), emptyNode(3, 5)}, nil, wire.Code_BAD_REQUEST},
		{"a minority of those named is silent", self, []*wire.FindResp{emptyNode(1, 3), emptyNode(3, 3)}, []string{"h:4", "h:5"}, wire.Code_OK},
		{"half of those named is silent", self, []*wire.FindResp{emptyNode(1, 3), emptyNode(3, 3)}, []string{"h:4", "h:5", "h:6"}, wire.Code_UNAVAILABLE},
		{"alone", alone, nil, nil, wire.Code_OK},
		{"alone beside a silent one", alone, nil, []string{"h:9"}, wire.Code_UNAVAILABLE},
		{"only ever joins", joiner, []*wire.FindResp{emptyNode(1, 0), emptyNode(3, 0)}, nil, wire.Code_UNAVAILABLE},
		{"one name twice", self, []*wire.FindResp{{Node: "x", Name: "n2", Empty: true, Expect: 3}}, nil, wire.Code_NAME_IN_USE},
	} {
		servers, err := formation(c.cfg, c.answers, c.silent)
		if wire.CodeOf(err) != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if err == nil && (len(servers) != c.cfg.Expect || !slices.IsSortedFunc(servers, func(a, b raft.Server) int { return strings.Compare(string(a.ID), string(b.ID)) })) {
			t.Errorf("%s: %v", c.name, servers)
		}
	}
}

// TestPledge drives one empty node's pledge: to one at a time, kept over a
// restart, and moved only when its holder cannot use it.
func TestPledge(t *testing.T) {
	a, b, c := newTestNode(t, "a"), newTestNode(t, "b"), newTestNode(t, "c")
	t.Cleanup(func() { closeAll([]*testNode{a, b, c}) })
	// Each expects more than will come, so nobody forms anything by itself.
	for _, n := range []*testNode{a, b, c} {
		n.mustOpen(9, a.addr, b.addr, c.addr)
	}
	ctx := testCtx(t)
	ask := func(who *testNode, servers ...string) *wire.PledgeResp {
		t.Helper()
		var resp *wire.PledgeResp
		eventually(t, "an answer", func() bool {
			var err error
			resp, err = c.c.servePledge(ctx, rpcnet.Caller{Node: who.id.ID}, &wire.PledgeReq{Node: who.id.ID, Servers: servers})
			return err == nil
		})
		return resp
	}
	all := []string{a.id.ID, b.id.ID, c.id.ID}
	// a holds its own pledge, as in a round of its own.
	if ok, _, err := a.c.record.grant(a.id.ID, all); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if got := ask(a, all...); !got.GetGranted() {
		t.Fatalf("%v", got)
	}
	if got := ask(b, all...); got.GetGranted() || got.GetPledged() != a.id.ID {
		t.Errorf("pledged twice: %v", got)
	}
	c.close()
	c.mustOpen(9, a.addr, b.addr)
	if got := ask(b, all...); got.GetGranted() || got.GetPledged() != a.id.ID {
		t.Errorf("after a restart: %v", got)
	}
	// a gives up without a word to c.
	if err := a.c.record.release(a.id.ID); err != nil {
		t.Fatal(err)
	}
	if got := ask(b, all...); !got.GetGranted() {
		t.Errorf("a lapsed pledge was kept: %v", got)
	}
	if got := ask(b); got.GetGranted() {
		t.Errorf("a release was granted: %v", got)
	}
	if to, _ := c.c.record.pledge(); to != "" {
		t.Errorf("still pledged to %s", to)
	}
	if _, err := c.c.servePledge(ctx, rpcnet.Caller{}, &wire.PledgeReq{Node: b.id.ID, Servers: []string{b.id.ID}}); wire.CodeOf(err) != wire.Code_BAD_REQUEST {
		t.Errorf("a pledge for servers without us: %v", err)
	}
}

// TestNodesThatComeOneByOne: whatever the order and the pauses, one cluster.
func TestNodesThatComeOneByOne(t *testing.T) {
	var nodes []*testNode
	var addrs []string
	for i := range 3 {
		n := newTestNode(t, fmt.Sprint("n", i))
		nodes, addrs = append(nodes, n), append(addrs, n.addr)
	}
	t.Cleanup(func() { closeAll(nodes) })
	for _, n := range nodes {
		n.mustOpen(3, addrs...)
		eventually(t, "it has looked around", func() bool { return n.c.settled.last() != nil || n.c.placed() })
		// One restart before the cluster is there must not matter.
		n.close()
		n.mustOpen(3, addrs...)
	}
	waitReady(t, nodes...)
	sameState(t, nodes)
}

func TestConfigReportsAllFaults(t *testing.T) {
	_, err := Open(t.Context(), Config{Profile: "moon", Expect: -1})
	if wire.CodeOf(err) != wire.Code_BAD_REQUEST {
		t.Fatal(err)
	}
	if _, err := Profile("moon").Timings(); wire.CodeOf(err) != wire.Code_BAD_REQUEST {
		t.Error(err)
	}
	for _, p := range []Profile{"", ProfileLocal, ProfileLAN, ProfileWAN} {
		if d, err := p.Timings(); err != nil || d.Lease > d.Heartbeat || d.Election < d.Heartbeat || (Timings{}).or(d) != d {
			t.Errorf("%q: %+v %v", p, d, err)
		}
	}
}

func TestRecordKeepsOneCluster(t *testing.T) {
	dir := t.TempDir()
	r, err := openRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	one, two := []byte("0123456789abcdef"), []byte("fedcba9876543210")
	if err := r.setCluster(one); err != nil {
		t.Fatal(err)
	}
	if err := r.setCluster(two); wire.CodeOf(err) != wire.Code_WRONG_CLUSTER {
		t.Errorf("%v", err)
	}
	again, err := openRecord(dir)
	if err != nil || string(again.clusterID()) != string(one) {
		t.Errorf("%v", err)
	}
	write(t, dir+"/"+recordFile, []byte(`{"cluster_id":"zz"}`))
	if _, err := openRecord(dir); wire.CodeOf(err) != wire.Code_INTERNAL {
		t.Errorf("%v", err)
	}
}
