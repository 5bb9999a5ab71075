package cluster

import (
	"testing"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/wire"
)

// TestPortions: what goes to a server at once is bounded in bytes, and is one entry
// at least.
func TestPortions(t *testing.T) {
	for name, c := range map[string]struct{ sizes, want []int }{
		"small ones":        {[]int{100, 200, 300}, []int{100, 200, 300}},
		"just fit":          {[]int{portionBytesMax / 2, portionBytesMax / 2}, []int{portionBytesMax / 2, portionBytesMax / 2}},
		"do not fit":        {[]int{portionBytesMax / 2, portionBytesMax/2 + 1, 1}, []int{portionBytesMax / 2}},
		"one larger":        {[]int{portionBytesMax + 1, 1}, []int{portionBytesMax + 1}},
		"a heartbeat":       {nil, nil},
		"many of 1 MiB":     {[]int{1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20}, []int{1 << 20, 1 << 20}},
		"empty ones at end": {[]int{portionBytesMax, 0, 0, 1}, []int{portionBytesMax, 0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			req := &raft.AppendEntriesRequest{}
			for _, n := range c.sizes {
				req.Entries = append(req.Entries, &raft.Log{Data: make([]byte, n)})
			}
			cutPortion(req)
			if len(req.Entries) != len(c.want) {
				t.Fatalf("%d entries, want %d", len(req.Entries), len(c.want))
			}
		})
	}
}

// TestCatchesUpOnLargeEntries: a server that lacks more than it takes in one request
// gets it in several.
func TestCatchesUpOnLargeEntries(t *testing.T) {
	nodes := newCluster(t, 3, nil)
	leader, others := leaderOf(t, nodes)
	others[0].kill()
	const size = 3 << 20
	for range raftRequestBytesMax/size + 12 {
		// Refused by the state machine, as there is no such session, but in the log.
		if _, err := leader.c.ProposeWait(testCtx(t), &wire.Command{Kind: &wire.Command_Write{Write: &wire.Write{
			Session: "none", Changes: []*wire.Change{{Key: "k", Value: make([]byte, size)}},
		}}}); err != nil {
			t.Fatal(err)
		}
	}
	others[0].mustOpen(3)
	waitReady(t, others[0])
	sameState(t, nodes)
}
