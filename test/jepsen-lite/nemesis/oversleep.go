package nemesis

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/baton-cluster/baton/test/jepsen-lite/mesh"
)

// Faults of owners that are stopped until others own what they owned.

const (
	// heirHead is for how long the new owner answers, writes too, before the old one
	// goes on.
	heirHead = 300 * time.Millisecond
	// heirLimit is how long a failover may take; where there is none, the owner goes on.
	heirLimit = 6 * time.Second
	heirEvery = 50 * time.Millisecond
	// lateHead is for how long an owner answers a client host whose answers are held
	// up before it is stopped.
	lateHead = 100 * time.Millisecond
	// lateMin is longer than a failover takes.
	lateMin = 3 * time.Second
)

// shared finds a session that several clients read, and who owns it.
func (r *Runner) shared(ctx context.Context, pick uint64) (id string, node int, ok bool) {
	id, err := r.World.Shared(pick)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		node, err = r.World.OwnerOf(ctx, id, int(pick%uint64(r.World.Nodes())))
	}
	if err != nil {
		r.logf("no owner of a shared session: %v", err)
	}
	return id, node, err == nil
}

// oversleep stops the owner of a shared session until another owns it and answers,
// and then lets it go on, again and again. One client host hears nobody but the old
// owner meanwhile: what it asked that one just before waits in its sockets.
func (r *Runner) oversleep(ctx context.Context, f Fault, rng *rand.Rand) {
	select {
	case r.sleeper <- struct{}{}:
		defer func() { <-r.sleeper }()
	default:
		r.logf("no %s: another owner sleeps", f.Kind)
		return
	}
	end := r.Now() + int64(f.For)
	for r.Now() < end && ctx.Err() == nil {
		if id, node, ok := r.shared(ctx, rng.Uint64()); ok {
			r.outlast(ctx, id, node, rng)
		}
		r.sleep(ctx, heirHead)
	}
}

func (r *Runner) outlast(ctx context.Context, id string, node int, rng *rand.Rand) {
	defer r.take(node)()
	name := mesh.Node(node)
	deaf := mesh.Client(rng.IntN(r.World.Clients()))
	var hops []hop
	for i := range r.World.Nodes() {
		if i != node {
			hops = append(hops, hop{mesh.Node(i), deaf, mesh.Policy{Blocked: true}})
		}
	}
	if !r.try(r.World.Pause(node), "pause %s until another owns %s, and block the others to %s", name, id, deaf) {
		return
	}
	undo := r.force(hops)
	found := r.succeeded(ctx, id, node)
	r.sleep(ctx, heirHead)
	r.try(r.World.Resume(node), "resume %s, succeeded: %v", name, found)
	r.sleep(ctx, heirHead) // it answers
	undo()
}

// succeeded waits until another node owns the session.
func (r *Runner) succeeded(ctx context.Context, id string, node int) bool {
	for limit := r.Now() + int64(heirLimit); r.Now() < limit && r.sleep(ctx, heirEvery); {
		ask, cancel := context.WithTimeout(ctx, time.Second)
		now, err := r.World.OwnerOf(ask, id, (node+1)%r.World.Nodes())
		cancel()
		if err == nil && now != node {
			return true
		}
	}
	return false
}

// late holds up whatever nodes send to one client host for as long as the owner of a
// shared session is stopped, which is long enough for a failover: the last answers of
// the old owner come after the first ones of the new; and before the client host can
// hear of that one.
func (r *Runner) late(ctx context.Context, f Fault, rng *rand.Rand) {
	f.For = max(f.For, lateMin)
	_, node, ok := r.shared(ctx, rng.Uint64())
	if !ok {
		return
	}
	client := mesh.Client(rng.IntN(r.World.Clients()))
	var slow []hop
	for i := range r.World.Nodes() {
		slow = append(slow, hop{mesh.Node(i), client, mesh.Policy{Delay: f.For}})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.network(ctx, f, node, slow)
	}()
	r.sleep(ctx, lateHead)
	r.process(ctx, Fault{Kind: Pause, For: f.For}, node)
	<-done
}
