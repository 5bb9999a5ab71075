package membership

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// State is how a member seems from here.
type State string

const (
	Alive State = "alive"
	// Suspect: gossip still holds it for alive, but this node's own probes have
	// had no direct answer for more than a round.
	Suspect State = "suspect"
	Dead    State = "dead"
	// Left: it said that it was leaving before it went.
	Left State = "left"
)

// Member is one node as gossip sees it.
type Member struct {
	ID   string
	Name string
	Addr string // management host:port
	// State is how it seems from here.
	State State
	// LastSeen is when it last answered this node directly, joined or went; for
	// people.
	LastSeen time.Time
}

// entry is a row of the table.
type entry struct {
	meta
	state State         // Alive, Dead or Left
	seen  time.Duration // on the clock
	wall  time.Time
}

// table is the members by id. memberlist forgets the dead after a while; the
// table does not, since "known to be dead" and "never heard of" are different
// answers. It is memberlist's delegate: those methods run under memberlist's
// lock, so they note and return, and never call memberlist.
type table struct {
	self       string
	clock      seam.Clock
	probeEvery time.Duration
	clusterID  func() []byte
	local      func() meta // this node's
	changed    func()      // must not block

	mu      sync.Mutex
	members map[string]*entry
}

var (
	_ memberlist.EventDelegate = (*table)(nil)
	_ memberlist.AliveDelegate = (*table)(nil)
	_ memberlist.PingDelegate  = (*table)(nil)
	_ memberlist.Delegate      = (*table)(nil)
)

// list returns copies, by id.
func (t *table) list() []Member {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.clock.Now()
	out := make([]Member, 0, len(t.members))
	for id, e := range t.members {
		m := Member{ID: id, Name: e.name, Addr: e.addr, State: e.state, LastSeen: e.wall}
		if id == t.self {
			m.LastSeen = t.clock.Wall()
		} else if e.state == Alive && now-e.seen > t.suspectAfter() {
			m.State = Suspect
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// suspectAfter is a round of probes, in which each other member has its turn,
// and the time for one probe to fail. t.mu is held.
func (t *table) suspectAfter() time.Duration {
	return time.Duration(len(t.members)+1) * t.probeEvery
}

func (t *table) alive(id string) (alive, known bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, known := t.members[id]
	return known && e.state == Alive, known
}

// addr is the member's stated address, empty if unknown.
func (t *table) addr(id string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.members[id]; e != nil {
		return e.addr
	}
	return ""
}

// set notes a state. A meta that cannot be read leaves what is known.
func (t *table) set(n *memberlist.Node, state State) {
	m, err := decodeMeta(n.Meta)
	t.mu.Lock()
	e := t.members[n.Name]
	if e == nil {
		t.makeRoom()
		e = &entry{}
		t.members[n.Name] = e
	}
	if err == nil {
		e.meta = m
	}
	if state == Dead && e.leaving {
		state = Left
	}
	e.state = state
	e.seen, e.wall = t.clock.Now(), t.clock.Wall()
	t.mu.Unlock()
	t.changed()
}

// makeRoom forgets the longest dead if the table is full. t.mu is held.
func (t *table) makeRoom() {
	if len(t.members) < membersMax {
		return
	}
	var oldest string
	for id, e := range t.members {
		if e.state == Alive {
			continue
		}
		if o := t.members[oldest]; o == nil || e.seen < o.seen || e.seen == o.seen && id < oldest {
			oldest = id
		}
	}
	delete(t.members, oldest)
}

// NotifyJoin: a member is alive that was dead, had left, or is new.
func (t *table) NotifyJoin(n *memberlist.Node) { t.set(n, Alive) }

// NotifyUpdate: its meta changed.
func (t *table) NotifyUpdate(n *memberlist.Node) { t.set(n, Alive) }

// NotifyLeave: it is dead, or has left.
func (t *table) NotifyLeave(n *memberlist.Node) { t.set(n, Dead) }

// NotifyAlive refuses members that do not belong here. An error keeps
// memberlist from believing this sign of life.
func (t *table) NotifyAlive(n *memberlist.Node) error {
	m, err := decodeMeta(n.Meta)
	if err != nil {
		return err
	}
	if n.Name == "" || len(n.Name) > idBytesMax {
		return wire.Errorf(wire.Code_BAD_REQUEST, "a node id has 1 to %d bytes", idBytesMax)
	}
	if ours := t.clusterID(); len(ours) > 0 && m.cluster != "" && m.cluster != string(ours) {
		return wire.Errorf(wire.Code_WRONG_CLUSTER, "%s at %s belongs to cluster %x, this node to %x", m.name, m.addr, m.cluster, ours)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.members[n.Name] != nil || len(t.members) < membersMax {
		return nil
	}
	for _, e := range t.members {
		if e.state != Alive {
			return nil
		}
	}
	return wire.Errorf(wire.Code_TOO_MANY, "there are %d members already", membersMax)
}

// NotifyPingComplete: a member answered this node's own probe.
func (t *table) NotifyPingComplete(n *memberlist.Node, _ time.Duration, _ []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.members[n.Name]; e != nil {
		e.seen, e.wall = t.clock.Now(), t.clock.Wall()
	}
}

// AckPayload: probes carry nothing of ours.
func (t *table) AckPayload() []byte { return nil }

// NodeMeta is what this node says of itself. Config's limits keep it below any
// limit that memberlist asks for (512).
func (t *table) NodeMeta(int) []byte { return t.local().encode() }

// The rest of memberlist's messages is not used: what nodes tell each other
// goes by rpcnet or through the log.

func (t *table) NotifyMsg([]byte)                {}
func (t *table) GetBroadcasts(_, _ int) [][]byte { return nil }
func (t *table) LocalState(bool) []byte          { return nil }
func (t *table) MergeRemoteState([]byte, bool)   {}
