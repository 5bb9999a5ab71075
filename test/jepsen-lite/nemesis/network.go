package nemesis

import (
	"context"
	"math/rand/v2"
	"sort"
	"time"

	"github.com/baton-cluster/baton/test/jepsen-lite/mesh"
)

// network puts hops in force for the fault's time. Faults that overlap add up:
// what one undoes, another may still hold.
func (r *Runner) network(ctx context.Context, f Fault, node int, hops []hop) {
	undo := r.force(hops)
	r.logf("%s %s for %v", f.Kind, mesh.Node(node), f.For.Round(time.Millisecond))
	r.sleep(ctx, f.For)
	undo()
	r.logf("%s %s is over", f.Kind, mesh.Node(node))
}

// force puts hops in force and returns what ends that.
func (r *Runner) force(hops []hop) (undo func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := r.next
	r.next++
	r.active[id] = hops
	r.apply(hops)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.active, id)
		r.apply(hops)
	}
}

// apply sets the links that hops touch to the sum of all faults in force.
// r.mu is held.
func (r *Runner) apply(hops []hop) {
	for _, h := range hops {
		var sum mesh.Policy
		for _, active := range r.active {
			for _, a := range active {
				if a.from == h.from && a.to == h.to {
					sum = add(sum, a.policy)
				}
			}
		}
		r.World.SetLink(h.from, h.to, sum)
	}
}

func add(a, b mesh.Policy) mesh.Policy {
	return mesh.Policy{
		Blocked: a.Blocked || b.Blocked,
		Delay:   max(a.Delay, b.Delay),
		Jitter:  max(a.Jitter, b.Jitter),
		Dialled: max(a.Dialled, b.Dialled),
		Loss:    max(a.Loss, b.Loss),
		Dup:     max(a.Dup, b.Dup),
		Reorder: max(a.Reorder, b.Reorder),
		Rate:    stricter(a.Rate, b.Rate),
	}
}

// stricter is the lower of two limits, where 0 is none.
func stricter(a, b int) int {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

var blocked = mesh.Policy{Blocked: true}

// around blocks what comes in to, or goes out of, a node.
func (r *Runner) around(node int, in, out, clients bool) []hop {
	name := mesh.Node(node)
	var others []string
	for i := range r.World.Nodes() {
		if i != node {
			others = append(others, mesh.Node(i))
		}
	}
	if clients {
		for i := range r.World.Clients() {
			others = append(others, mesh.Client(i))
		}
	}
	var hops []hop
	for _, o := range others {
		if in {
			hops = append(hops, hop{o, name, blocked})
		}
		if out {
			hops = append(hops, hop{name, o, blocked})
		}
	}
	return hops
}

// hops is the shape of a network fault.
func (r *Runner) hops(_ context.Context, f Fault, node int, rng *rand.Rand) []hop {
	n := r.World.Nodes()
	both := func(a, b string) []hop { return []hop{{a, b, blocked}, {b, a, blocked}} }
	var hops []hop
	switch f.Kind {
	case Isolate:
		return r.around(node, true, true, false)
	case CutOff:
		return r.around(node, true, true, true)
	case OneWayIn:
		return r.around(node, true, false, false)
	case OneWayOut:
		return r.around(node, false, true, false)
	case Halves:
		return r.halves(rng, both)
	case Ring:
		for i := range n {
			for j := range n {
				if j != i && j != (i+1)%n {
					hops = append(hops, hop{mesh.Node(i), mesh.Node(j), blocked})
				}
			}
		}
	case Bridge:
		return both(mesh.Node((node+1)%n), mesh.Node((node+2)%n))
	case ClientCut:
		for i := range r.World.Clients() {
			hops = append(hops, both(mesh.Client(i), mesh.Node(node))...)
		}
	case Rate:
		p := mesh.Policy{Rate: (100 + rng.IntN(400)) << 10}
		for _, a := range r.hosts() {
			if a != mesh.Node(node) {
				hops = append(hops, hop{a, mesh.Node(node), p}, hop{mesh.Node(node), a, p})
			}
		}
	case Slow, Lossy, Reorder:
		p := mesh.Policy{Delay: 5 * time.Millisecond, Jitter: time.Duration(1+rng.IntN(40)) * time.Millisecond}
		switch f.Kind {
		case Lossy:
			p = mesh.Policy{Loss: 0.02 + 0.2*rng.Float64(), Dup: 0.1, Jitter: 2 * time.Millisecond}
		case Reorder:
			p = mesh.Policy{Reorder: 0.05 + 0.3*rng.Float64()}
		}
		for _, a := range r.hosts() {
			for _, b := range r.hosts() {
				if a != b {
					hops = append(hops, hop{a, b, p})
				}
			}
		}
	}
	return hops
}

func (r *Runner) hosts() []string {
	var out []string
	for i := range r.World.Nodes() {
		out = append(out, mesh.Node(i))
	}
	for i := range r.World.Clients() {
		out = append(out, mesh.Client(i))
	}
	return out
}

// halves splits nodes and clients into two groups, neither without a node.
func (r *Runner) halves(rng *rand.Rand, both func(a, b string) []hop) []hop {
	var nodes, all []string
	for i := range r.World.Nodes() {
		nodes = append(nodes, mesh.Node(i))
	}
	rng.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	side := map[string]bool{}
	for i, name := range nodes {
		side[name] = i < (len(nodes)+1)/2
	}
	for i := range r.World.Clients() {
		side[mesh.Client(i)] = rng.IntN(2) == 0
	}
	for name := range side {
		all = append(all, name)
	}
	sort.Strings(all)
	var hops []hop
	for i, a := range all {
		for _, b := range all[:i] {
			if side[a] != side[b] {
				hops = append(hops, both(a, b)...)
			}
		}
	}
	return hops
}
