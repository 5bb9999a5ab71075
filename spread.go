package baton

import (
	"time"

	"github.com/baton-cluster/baton/rpcnet"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

const (
	// crowd is how many connections may come to the other nodes at once.
	crowd = 256
	// arrivalsPerSecond is how many a node is then given a second: half of what it
	// takes, as others come too.
	arrivalsPerSecond = rpcnet.HandshakesPerSecondMaxDefault / 2
)

// spread is over how long this node's clients are to come to the others when it
// dies.
func (n *Node) spread() time.Duration {
	if !n.serves.Load() {
		return 0
	}
	conns := n.server.Conns()
	if conns <= crowd {
		return 0
	}
	others := 0
	n.cluster.FSM().View(func(st *store.Store) {
		for _, r := range st.Workers() {
			if r.GetId() != n.id && r.GetState() == wire.WorkerState_WORKER_STATE_ACTIVE {
				others++
			}
		}
	})
	return time.Duration(conns) * time.Second / time.Duration(arrivalsPerSecond*max(1, others))
}
