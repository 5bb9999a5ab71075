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
	// arrivalsPerProcessor is how many a node is then given a second for each of its
	// processors: with what they ask for first they cost it about a tenth of them, as
	// it has its own clients to serve, and may have to share its processors. Too many
	// are worse than too slow: who is not heard in time comes again. At most it is
	// arrivalsMax, half of what a node takes.
	arrivalsPerProcessor = 60
	arrivalsMax          = rpcnet.HandshakesPerSecondMaxDefault / 2
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
	arrivals := min(arrivalsMax, arrivalsPerProcessor*n.processors) // the others are taken to be alike
	others := 0
	n.cluster.FSM().View(func(st *store.Store) {
		for _, r := range st.Workers() {
			if r.GetId() != n.id && r.GetState() == wire.WorkerState_WORKER_STATE_ACTIVE {
				others++
			}
		}
	})
	return time.Duration(conns) * time.Second / time.Duration(arrivals*max(1, others))
}
