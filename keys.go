package baton

import (
	"context"
	"crypto/rand"
	"sync"
	"sync/atomic"
	"time"

	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/pki"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// nodeKeys is the cluster's key ring as this node's applied state has it, opened.
type nodeKeys struct {
	ring atomic.Pointer[pki.Ring]
	mu   sync.Mutex   // held while a ring is adopted, from the look at the state on
	tls  *pki.UserTLS // nil: the user port is not served yet
}

// Newest and Of are the seal keys for the worker.
func (k *nodeKeys) Newest() migrate.SealKey {
	generation, key := k.ring.Load().Seal()
	return migrate.SealKey{Generation: generation, Key: key}
}

func (k *nodeKeys) Of(generation uint64) (migrate.SealKey, bool) {
	key, ok := k.ring.Load().SealOf(generation)
	return migrate.SealKey{Generation: generation, Key: key}, ok
}

// serve keeps the ticket keys of u those of the ring.
func (k *nodeKeys) serve(u *pki.UserTLS) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tls = u
	u.SetRing(k.ring.Load())
}

// adoptKeys opens the ring that is applied here, and uses it from now on.
// KEYS_UNREADABLE: this node is not of the cluster whose data it has.
func (n *Node) adoptKeys() error {
	n.keys.mu.Lock()
	defer n.keys.mu.Unlock()
	var id []byte
	var keys []*wire.KeyGeneration
	n.cluster.FSM().View(func(st *store.Store) { id, keys = st.Cluster().GetClusterId(), st.Keys() })
	ring, err := n.identity.OpenRing(id, keys)
	if err != nil {
		return err
	}
	if old := n.keys.ring.Swap(ring); old != nil && old.Generation() != ring.Generation() {
		n.cfg.Log.Info("a new generation of keys", "generation", ring.Generation())
	}
	if n.keys.tls != nil {
		n.keys.tls.SetRing(ring)
	}
	return nil
}

// observe hands on what the state machine applied. Keys come first: the worker
// looks for them when it is told.
func (n *Node) observe(events []store.Event) {
	if keysChanged(events) {
		if err := n.adoptKeys(); err != nil {
			n.fail(err)
		}
	}
	n.worker.Observe(events)
	n.nudge()
}

// keysChanged reports whether events call for adoptKeys.
func keysChanged(events []store.Event) bool {
	for _, e := range events {
		switch e.Kind {
		case store.EventKeys, store.EventRestored:
			return true
		}
	}
	return false
}

// birth is the cluster's first generation of keys, made by its first leader.
func (n *Node) birth(clusterID []byte) ([]*wire.Command, error) {
	nonce, err := newNonce()
	if err != nil {
		return nil, err
	}
	c, err := n.rotation(clusterID, nonce, 1, wire.KeyKindsAll, "the cluster's first leader")
	return []*wire.Command{c}, err
}

// rotation is the command that begins a generation, with a root key made here.
func (n *Node) rotation(clusterID, nonce []byte, generation uint64, kinds uint32, by string) (*wire.Command, error) {
	root, err := n.identity.NewRoot(clusterID, generation, rand.Reader)
	if err != nil {
		return nil, err
	}
	return &wire.Command{Kind: &wire.Command_RotateKeys{RotateKeys: &wire.RotateKeys{
		Nonce: nonce, Generation: generation, Root: root, Kinds: kinds, By: by,
	}}}, nil
}

// catchUp returns once all is applied here that was committed when it began.
func (n *Node) catchUp(ctx context.Context) error {
	err := n.cluster.Barrier(ctx)
	if err != nil && ctx.Err() != nil {
		return wire.Errorf(wire.Code_UNAVAILABLE, "the node has not caught up with the cluster: %v", err)
	}
	return err
}

// keyKinds are the kinds of keys by name.
var keyKinds = []struct {
	name string
	kind wire.KeyKind
}{
	{"ticket", wire.KeyKind_KEY_KIND_TICKET},
	{"address", wire.KeyKind_KEY_KIND_ADDRESS},
	{"seal", wire.KeyKind_KEY_KIND_SEAL},
}

// kindsOf parses names; none, or "all": all.
func kindsOf(names []string) (set uint32, err error) {
	for _, name := range names {
		kind := uint32(0)
		if name == "all" {
			kind = wire.KeyKindsAll
		}
		for _, k := range keyKinds {
			if k.name == name {
				kind = uint32(k.kind)
			}
		}
		if kind == 0 {
			return 0, wire.Errorf(wire.Code_BAD_REQUEST, "%q is no kind of key: use all, ticket, address or seal", name)
		}
		set |= kind
	}
	if set == 0 {
		set = wire.KeyKindsAll
	}
	return set, nil
}

func kindNames(set uint32) []string {
	names := []string{}
	for _, k := range keyKinds {
		if set&uint32(k.kind) != 0 {
			names = append(names, k.name)
		}
	}
	return names
}

// KeyRotation asks for a new generation of the cluster's keys.
type KeyRotation struct {
	Kinds []string `json:"kinds"` // ticket, address, seal; none, or "all": all
	By    string   `json:"by"`
	// Nonce makes a repeated request the same one; empty: RotateKeys draws it.
	Nonce []byte `json:"nonce"`
}

// KeyRing is the cluster's key ring, without any key.
type KeyRing struct {
	Generations []KeyGeneration `json:"generations"` // by rising number
	Nodes       []NodeKeys      `json:"nodes"`
}

// KeyGeneration is one root key. Generation 0 is derived from cluster.key.
type KeyGeneration struct {
	Generation uint64    `json:"generation"`
	Kinds      []string  `json:"kinds"`
	InUse      []string  `json:"in_use"` // the kinds that it is the newest of
	At         time.Time `json:"at"`
	AgeUS      int64     `json:"age_us"` // in log time
	By         string    `json:"by"`
	// DropsInUS is the log time left until what it sealed opens no more; -1: it is
	// in use.
	DropsInUS int64 `json:"drops_in_us"`
}

// NodeKeys is the newest generation that a node uses.
type NodeKeys struct {
	Node       string `json:"node"`
	Generation uint64 `json:"generation"`
	Reachable  bool   `json:"reachable"`
}

// rotateKeys is the leader's: it makes the root key.
func (n *Node) rotateKeys(ctx context.Context, req KeyRotation) (KeyRing, error) {
	kinds, err := kindsOf(req.Kinds)
	if err == nil && len(req.Nonce) == 0 {
		req.Nonce, err = newNonce()
	}
	if err != nil {
		return KeyRing{}, err
	}
	var next uint64 = 1
	n.cluster.FSM().View(func(st *store.Store) {
		if keys := st.Keys(); len(keys) > 0 {
			next = keys[len(keys)-1].GetGeneration() + 1
		}
	})
	for {
		cmd, err := n.rotation(n.clusterID(), req.Nonce, next, kinds, req.By)
		if err != nil {
			return KeyRing{}, err
		}
		res, err := n.cluster.ProposeWait(ctx, cmd)
		if err != nil {
			return KeyRing{}, err
		}
		switch code := res[0].GetCode(); code {
		case wire.Code_OK:
			if err := n.applied(ctx); err != nil {
				return KeyRing{}, err
			}
			return n.keyRing(ctx), nil
		case wire.Code_KEYS_ROTATED: // by someone else at the same time: this one comes after it
			next = res[0].GetCurrent() + 1
		default:
			return KeyRing{}, wire.Errorf(code, "the cluster refused the new keys")
		}
	}
}

// keyRing describes the ring as it is applied here, and who uses it.
func (n *Node) keyRing(ctx context.Context) KeyRing {
	locals, _ := gather(ctx, n, callLocal, n.local)
	now := n.cluster.LogTimeUS()
	var keys []*wire.KeyGeneration
	out := KeyRing{Generations: []KeyGeneration{}, Nodes: []NodeKeys{}}
	n.cluster.FSM().View(func(st *store.Store) {
		keys, now = st.Keys(), max(now, st.TimeUS())
		for _, w := range st.Workers() {
			l, asked := locals[w.GetId()]
			out.Nodes = append(out.Nodes, NodeKeys{Node: w.GetName(), Generation: l.Keys, Reachable: asked})
		}
	})
	if len(keys) == 0 {
		keys = []*wire.KeyGeneration{{Kinds: wire.KeyKindsAll}}
	}
	taken := uint32(0)
	for i := len(keys) - 1; i >= 0; i-- {
		k := keys[i]
		g := KeyGeneration{
			Generation: k.GetGeneration(), Kinds: kindNames(k.GetKinds()), InUse: kindNames(k.GetKinds() &^ taken),
			AgeUS: int64(now - min(now, k.GetMadeUs())), By: k.GetBy(), DropsInUS: -1,
		}
		if k.GetWallUs() > 0 {
			g.At = time.UnixMicro(k.GetWallUs()).UTC()
		}
		if r := k.GetReplacedUs(); r > 0 {
			g.DropsInUS = max(0, int64(r)+wire.KeyRetention.Microseconds()-int64(now))
		}
		taken |= k.GetKinds()
		out.Generations = append([]KeyGeneration{g}, out.Generations...)
	}
	return out
}
