package rpcnet

import (
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// bookNodesMax bounds what a client remembers of a cluster.
const bookNodesMax = 4096

// book is what a client knows of a cluster's nodes: where they are, and which
// did not answer lately. All sessions of a client share it. It does no IO and
// reads no clock.
type book struct {
	mu       sync.Mutex
	seeds    []string // as configured; never forgotten
	nodes    []*wire.NodeInfo
	suspects map[string]time.Duration // address: when to trust it again
	next     int                      // where the next pick starts
}

func newBook(seeds []string, start int) *book {
	return &book{seeds: slices.Clone(seeds), suspects: map[string]time.Duration{}, next: start}
}

// nodeAddr is where a node takes clients, "" if it does not say.
func nodeAddr(n *wire.NodeInfo) string {
	if n.GetHost() == "" || n.GetUserPort() == 0 {
		return ""
	}
	return net.JoinHostPort(n.GetHost(), strconv.Itoa(int(n.GetUserPort())))
}

// learn adds nodes, or updates their addresses.
func (b *book) learn(nodes ...*wire.NodeInfo) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range nodes {
		if nodeAddr(n) == "" {
			continue
		}
		i := slices.IndexFunc(b.nodes, func(o *wire.NodeInfo) bool { return o.GetId() == n.GetId() })
		switch {
		case i >= 0:
			b.nodes[i] = n
		case len(b.nodes) < bookNodesMax:
			b.nodes = append(b.nodes, n)
		}
	}
}

// find returns the address of a node by its id or name, or "".
func (b *book) find(name string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range b.nodes {
		if name != "" && (n.GetId() == name || n.GetName() == name) {
			return nodeAddr(n)
		}
	}
	return ""
}

// suspect makes addr the last choice until then.
func (b *book) suspect(addr string, until time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.suspects[addr] = max(b.suspects[addr], until)
}

// trust ends a suspicion: the node answered.
func (b *book) trust(addr string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.suspects, addr)
}

func (b *book) suspected(addr string, now time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.suspects[addr] > now
}

// hasOthers reports whether there are addresses that are not in some. seeds: only those
// that are configured count.
func (b *book) hasOthers(some []string, seeds bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	other := func(addr string) bool { return !slices.Contains(some, addr) }
	return slices.ContainsFunc(b.seeds, other) ||
		!seeds && slices.ContainsFunc(b.nodes, func(n *wire.NodeInfo) bool { return other(nodeAddr(n)) })
}

// pick returns the next address to try, in turn: one that is not suspected and
// not in avoid if there is one, else one that is not in avoid, else any. fresh
// reports the first case.
func (b *book) pick(now time.Duration, avoid ...string) (addr string, fresh bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := slices.Clone(b.seeds)
	for _, n := range b.nodes {
		if a := nodeAddr(n); !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return b.pickOf(all, now, avoid...)
}

// pickSeed is pick among the configured addresses only.
func (b *book) pickSeed(now time.Duration, avoid string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	addr, _ := b.pickOf(b.seeds, now, avoid)
	return addr
}

// pickOf needs b.mu.
func (b *book) pickOf(all []string, now time.Duration, avoid ...string) (addr string, fresh bool) {
	if len(all) == 0 {
		return "", false
	}
	b.next = (b.next + 1) % len(all)
	for i := range all {
		a := all[(b.next+i)%len(all)]
		if b.suspects[a] <= now && !slices.Contains(avoid, a) {
			return a, true
		}
	}
	for i := range all {
		a := all[(b.next+i)%len(all)]
		if !slices.Contains(avoid, a) {
			return a, false
		}
	}
	return all[b.next], false
}
