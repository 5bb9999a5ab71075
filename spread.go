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
	// arrivalsPerSecond is how many a node is then given a second: a quarter of what
	// it takes at most, about a third of a processor. It has its own clients to
	// serve, and those that came to attach.
	arrivalsPerSecond = rpcnet.HandshakesPerSecondMaxDefault / 4
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
