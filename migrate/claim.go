package migrate

import (
	"time"

	"github.com/baton-cluster/baton/wire"
)

// claimTime is how long a claim stands unless it is repeated.
const claimTime = 3 * time.Second

// claim is what a new start of a worker says of its former incarnation.
type claim struct {
	incarnation uint64
	at          time.Duration
}

// aliveNow is gossip's view of a worker's incarnation. A claim overrides it, for
// gossip would take the successor for its predecessor; it holds even against the
// worker beside this director, which may be that successor.
func (r *run) aliveNow(now time.Duration, w *wire.WorkerRow) (alive, known bool) {
	id := w.GetId()
	if c, ok := r.keep.claims[id]; ok {
		if c.incarnation == w.GetIncarnation() && now-c.at < claimTime {
			return false, true
		}
		delete(r.keep.claims, id)
	}
	if id == r.cfg.Self {
		return true, true
	}
	return r.cfg.Alive(id)
}
