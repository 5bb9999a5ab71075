package nemesis

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/baton-cluster/baton/test/jepsen-lite/control"
	"github.com/baton-cluster/baton/test/jepsen-lite/mesh"
)

// Faults of a node's disk and of clocks.

// setFaults changes a node's faults and leaves those that fn does. A node that
// does not run has none when it starts.
func (r *Runner) setFaults(ctx context.Context, node int, fn func(*control.Faults)) error {
	r.mu.Lock()
	fn(&r.faults[node])
	f := r.faults[node]
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), controlLimit)
	defer cancel()
	return r.World.SetFaults(ctx, node, f)
}

const (
	controlLimit = 2 * time.Second
	// settleLimit is how long a node may take to end, or to be well again: it waits
	// for a hanging disk twice as long as for one write.
	settleLimit = time.Minute
	// refuseLimit is how long a node may take to find that its files are damaged. It
	// ends the wait only of a node that neither ends nor serves.
	refuseLimit = time.Minute
	// rejoinLimit is how long the next fault of this kind waits for a node that lost
	// its data to have a vote again.
	rejoinLimit = 2 * time.Minute
)

// disk lets a node's disk fail for a while. Then the node goes on, or has ended
// and is started again.
func (r *Runner) disk(ctx context.Context, f Fault, node int) {
	defer r.take(node)()
	name := mesh.Node(node)
	err := r.setFaults(ctx, node, func(c *control.Faults) {
		c.Full, c.SyncFails, c.Stalled = f.Kind == DiskFull, f.Kind == SyncFail, f.Kind == DiskStall
	})
	if r.try(err, "%s %s for %v", f.Kind, name, f.For.Round(time.Millisecond)) {
		r.sleep(ctx, f.For)
	}
	_ = r.setFaults(ctx, node, func(c *control.Faults) { c.Full, c.SyncFails, c.Stalled = false, false, false }) // it may have ended
	settle, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleLimit)
	defer cancel()
	r.try(r.World.Settle(settle, node), "%s %s is over", f.Kind, name)
}

// forget has a node lose its data: at once, or because they are damaged, which it
// must notice, and say, before it serves anything. It comes back with none.
func (r *Runner) forget(ctx context.Context, f Fault, node int) {
	select {
	case r.memory <- struct{}{}:
		defer func() { <-r.memory }()
	default:
		r.logf("no %s: another node is without its data still", f.Kind)
		return
	}
	if err := r.World.Whole(ctx); err != nil {
		r.logf("no %s: %v", f.Kind, err)
		return
	}
	if !r.damage(ctx, f, node) {
		return
	}
	for end := r.Now() + int64(rejoinLimit); r.World.Whole(ctx) != nil && r.Now() < end; {
		if !r.sleep(ctx, time.Second) {
			return
		}
	}
	r.try(r.World.Whole(ctx), "%s has its vote again", mesh.Node(node))
}

// damage reports whether the node has started without its data.
func (r *Runner) damage(ctx context.Context, f Fault, node int) (wiped bool) {
	defer r.take(node)()
	name := mesh.Node(node)
	w := r.World
	r.try(w.Kill(node), "kill %s", name)
	defer func() { r.try(w.Start(node), "start %s", name) }()
	if f.Kind != Wipe {
		what, sure, err := w.Damage(node, f.Kind, f.Pick)
		if !r.try(err, "%s %s: %s", f.Kind, name, what) {
			return false
		}
		start, cancel := context.WithTimeout(context.WithoutCancel(ctx), refuseLimit)
		defer cancel()
		refused, err := w.Refuses(start, node, sure)
		r.try(err, "%s on damaged files: refused %v", name, refused)
		r.try(w.Kill(node), "kill %s", name) // where it serves: what is damaged is of no use to it
	}
	return r.try(w.Wipe(node), "wipe %s", name)
}

// clocks puts all nodes' clocks out of step, in rate or date.
func (r *Runner) clocks(ctx context.Context, f Fault, rng *rand.Rand) {
	set := func(rate float64, wall time.Duration) func(*control.Faults) {
		return func(c *control.Faults) {
			if f.Kind == Skew {
				c.Rate = rate
			} else {
				c.Wall = wall
			}
		}
	}
	for i := range r.World.Nodes() {
		rate := control.RateMin + rng.Float64()*(control.RateMax-control.RateMin)
		wall := time.Duration(rng.Int64N(int64(2*day))) - day
		r.try(r.setFaults(ctx, i, set(rate, wall)), "%s %s: rate %.3f, wall clock off by %v", f.Kind, mesh.Node(i), rate, wall.Round(time.Second))
	}
	r.sleep(ctx, f.For)
	for i := range r.World.Nodes() {
		r.try(r.setFaults(ctx, i, set(0, 0)), "%s %s is over", f.Kind, mesh.Node(i))
	}
}

const day = 24 * time.Hour

// asleep stops a node's process, and its timers' clock with it.
func (r *Runner) asleep(ctx context.Context, f Fault, node int) {
	defer r.take(node)()
	name := mesh.Node(node)
	if !r.try(r.setFaults(ctx, node, func(c *control.Faults) { c.Asleep = true }), "%s falls asleep", name) {
		_ = r.setFaults(ctx, node, func(c *control.Faults) { c.Asleep = false })
		return
	}
	if r.try(r.World.Pause(node), "pause %s", name) {
		r.sleep(ctx, f.For)
		r.try(r.World.Resume(node), "resume %s", name)
	}
	r.try(r.setFaults(ctx, node, func(c *control.Faults) { c.Asleep = false }), "%s is awake", name)
}
