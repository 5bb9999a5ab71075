package nemesis

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/baton-cluster/baton/test/jepsen-lite/control"
	"github.com/baton-cluster/baton/test/jepsen-lite/mesh"
)

// World is what faults act on. Node numbers start at 0. Methods may be called
// concurrently for different nodes; an error is logged, not fatal: a cluster
// under faults may well refuse.
type World interface {
	Nodes() int
	Clients() int
	Sessions() int
	Leader(ctx context.Context) (int, error)
	Owner(ctx context.Context, session int) (int, error)
	// Shared picks a session that several clients read, and OwnerOf asks one node for
	// the owner of one.
	Shared(pick uint64) (id string, err error)
	OwnerOf(ctx context.Context, id string, ask int) (int, error)
	Kill(node int) error
	Start(node int) error
	Stop(ctx context.Context, node int) error // in order, waits until it ended
	Pause(node int) error
	Resume(node int) error
	MoveLeader(ctx context.Context) error
	// MoveVote moves the vote of one server, the leader's too, to one that follows,
	// and says whose and where to.
	MoveVote(ctx context.Context, pick uint64) (what string, err error)
	Drain(ctx context.Context, node int) error // starts it
	Undrain(ctx context.Context, node int) error
	Migrate(ctx context.Context, session, to int) error
	Fence(ctx context.Context, node int) error
	Displace() // has other clients attach to the sessions, now
	Rebalance(ctx context.Context) error
	LinkDown(node int, down bool) error
	SetLink(from, to string, p mesh.Policy)
	Sever(a, b string)

	// SetFaults puts faults of disk and clock in force in place of those that are. A
	// node may end by itself under some: that is no death until Settle.
	SetFaults(ctx context.Context, node int, f control.Faults) error
	// Settle waits until a node that had faults is well, and starts it if it has
	// ended over them.
	Settle(ctx context.Context, node int) error
	// Whole is nil while every node votes, and has the log. Damage and Wipe take a
	// node's memory of its votes: no second node may lose its own meanwhile.
	Whole(ctx context.Context) error
	// Damage does what the kind says to the files of a node that does not run, and
	// says what; sure, if the node must then refuse to start.
	Damage(node int, kind Kind, pick uint64) (what string, sure bool, err error)
	// Refuses starts the node on damaged files and is nil if it ends with a clear
	// error, as it must if sure.
	Refuses(ctx context.Context, node int, sure bool) (refused bool, err error)
	// Wipe removes the data of a node that does not run.
	Wipe(node int) error
}

// Event is what was really done.
type Event struct {
	At   int64  `json:"at"` // nanoseconds since the run began
	What string `json:"what"`
}

// Seconds is At.
func (e Event) Seconds() float64 { return float64(e.At) / 1e9 }

// Span is for how long a fault was under way, in nanoseconds since the run began.
type Span struct {
	Kind Kind   `json:"kind"`
	Node string `json:"node,omitempty"` // that it was aimed at
	From int64  `json:"from"`
	To   int64  `json:"to"`
}

// Runner carries a plan out.
type Runner struct {
	World World
	Now   func() int64 // nanoseconds since the run began
	Log   func(Event)
	Did   func(Span) // may be nil

	mu     sync.Mutex
	next   int
	active map[int][]hop   // network faults in force
	turns  []chan struct{} // of each node's process: one fault at a time
	memory chan struct{}   // one node at a time loses its data
	faults []control.Faults
	// One owner at a time oversleeps: without a majority nobody succeeds it.
	sleeper chan struct{}
}

// hop is one direction of one link under a fault.
type hop struct {
	from, to string
	policy   mesh.Policy
}

// Run carries out the plan and returns when all of it is undone, or, once ctx
// ends, as soon as what was under way is undone.
func (r *Runner) Run(ctx context.Context, plan []Fault) {
	r.active = map[int][]hop{}
	r.memory, r.sleeper = make(chan struct{}, 1), make(chan struct{}, 1)
	r.faults = make([]control.Faults, r.World.Nodes())
	r.turns = make([]chan struct{}, r.World.Nodes())
	for i := range r.turns {
		r.turns[i] = make(chan struct{}, 1)
	}
	var wg sync.WaitGroup
	for _, f := range plan {
		if !r.sleep(ctx, f.At-time.Duration(r.Now())) {
			break
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			r.inflict(ctx, f)
		}()
	}
	wg.Wait()
}

func (r *Runner) sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(max(d, 0))
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

func (r *Runner) logf(format string, args ...any) {
	r.Log(Event{At: r.Now(), What: fmt.Sprintf(format, args...)})
}

// try logs what is done, and why it failed.
func (r *Runner) try(err error, format string, args ...any) bool {
	what := fmt.Sprintf(format, args...)
	if err != nil {
		what += ": " + err.Error()
	}
	r.Log(Event{At: r.Now(), What: what})
	return err == nil
}

// inflict does one fault and undoes it.
func (r *Runner) inflict(ctx context.Context, f Fault) {
	rng := rand.New(rand.NewPCG(f.Pick, f.Pick))
	node := r.resolve(ctx, f)
	if r.Did != nil {
		from := r.Now()
		defer func() { r.Did(Span{f.Kind, mesh.Node(node), from, r.Now()}) }()
	}
	switch f.Kind {
	case Kill, Pause, PauseKill, KillTwice:
		r.process(ctx, f, node)
	case KillAll:
		r.killAll(ctx, f)
	case Roll:
		r.roll(ctx)
	case MoveLead:
		r.try(r.World.MoveLeader(ctx), "move leadership")
	case MoveVote:
		r.moveVotes(ctx, f, rng)
	case Drain:
		if r.try(r.World.Drain(ctx, node), "drain %s", mesh.Node(node)) {
			r.sleep(ctx, f.For)
		}
		r.undrain(ctx, node)
	case Migrate:
		r.migrate(ctx, f, rng)
	case Sever:
		r.sever(ctx, f)
	case LinkDown:
		if r.try(r.World.LinkDown(node, true), "link of %s is down", mesh.Node(node)) {
			r.sleep(ctx, f.For)
		}
		r.try(r.World.LinkDown(node, false), "link of %s is up", mesh.Node(node))
	case Flap:
		r.flap(ctx, f, node)
	case FenceLate:
		r.fenceLate(ctx, f, node)
	case Late:
		r.late(ctx, f, rng)
	case Oversleep:
		r.oversleep(ctx, f, rng)
	case Jobs:
		r.jobs(ctx, f, rng)
	case DiskFull, SyncFail, DiskStall:
		r.disk(ctx, f, node)
	case FlipLog, FlipSnap, CutFile, Wipe:
		r.forget(ctx, f, node)
	case Skew, Step:
		r.clocks(ctx, f, rng)
	case Sleep:
		r.asleep(ctx, f, node)
	default:
		hops := r.hops(ctx, f, node, rng)
		r.network(ctx, f, node, hops)
	}
}

// resolve finds whom a fault hits; where that cannot be found out now, the dice
// say.
func (r *Runner) resolve(ctx context.Context, f Fault) int {
	n := r.World.Nodes()
	for i := range n {
		if f.Target == mesh.Node(i) {
			return i
		}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	node, err := r.World.Leader(ctx)
	if f.Target == Owner {
		node, err = r.World.Owner(ctx, int(f.Pick%uint64(max(1, r.World.Sessions()))))
	}
	if err != nil || node < 0 || node >= n {
		return int(f.Pick % uint64(n))
	}
	return node
}

// take waits for a node's process to be free of faults and returns what frees
// it again. A channel and not a mutex: tests run in virtual time, which stands
// still while a mutex is waited for.
func (r *Runner) take(node int) (free func()) {
	r.turns[node] <- struct{}{}
	return func() { <-r.turns[node] }
}

func (r *Runner) process(ctx context.Context, f Fault, node int) {
	defer r.take(node)()
	name := mesh.Node(node)
	w := r.World
	switch f.Kind {
	case Pause:
		if r.try(w.Pause(node), "pause %s", name) {
			r.sleep(ctx, f.For)
			r.try(w.Resume(node), "resume %s", name)
		}
		return
	case PauseKill:
		if r.try(w.Pause(node), "pause %s", name) {
			r.sleep(ctx, f.For)
		}
	case KillTwice:
		r.try(w.Kill(node), "kill %s", name)
		r.try(w.Start(node), "start %s", name)
		r.sleep(ctx, f.For)
	}
	r.try(w.Kill(node), "kill %s", name)
	if f.Kind == Kill {
		r.sleep(ctx, f.For)
	}
	r.try(w.Start(node), "start %s", name)
}

func (r *Runner) killAll(ctx context.Context, f Fault) {
	for i := range r.turns { // in this order always, so that nobody waits in a circle
		defer r.take(i)()
	}
	for i := range r.turns {
		r.try(r.World.Kill(i), "kill %s", mesh.Node(i))
	}
	r.sleep(ctx, f.For/4) // nobody serves meanwhile
	for i := range r.turns {
		r.try(r.World.Start(i), "start %s", mesh.Node(i))
	}
}

// stopGrace bounds an orderly stop; a node that was cut off needs the kill.
const stopGrace = 10 * time.Second

func (r *Runner) roll(ctx context.Context) {
	for i := range r.turns {
		if ctx.Err() != nil {
			return
		}
		func() {
			defer r.take(i)()
			stop, cancel := context.WithTimeout(ctx, stopGrace)
			defer cancel()
			if !r.try(r.World.Stop(stop, i), "stop %s", mesh.Node(i)) {
				r.try(r.World.Kill(i), "kill %s", mesh.Node(i))
			}
			r.try(r.World.Start(i), "start %s", mesh.Node(i))
		}()
		r.sleep(ctx, time.Second)
	}
}

// undrain insists: a node left draining would not be undone.
func (r *Runner) undrain(ctx context.Context, node int) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	for !r.try(r.World.Undrain(ctx, node), "undrain %s", mesh.Node(node)) {
		if !r.sleep(ctx, 500*time.Millisecond) {
			return
		}
	}
}

func (r *Runner) migrate(ctx context.Context, f Fault, rng *rand.Rand) {
	end, cancel := context.WithTimeout(ctx, f.For)
	defer cancel()
	done, failed := 0, 0
	for end.Err() == nil && r.World.Sessions() > 0 {
		if r.World.Migrate(end, rng.IntN(r.World.Sessions()), rng.IntN(r.World.Nodes())) == nil {
			done++
		} else {
			failed++
		}
		r.sleep(end, 20*time.Millisecond)
	}
	r.logf("migrated %d sessions, %d refused or aborted", done, failed)
}

// jobs keeps drains and rebalances going.
func (r *Runner) jobs(ctx context.Context, f Fault, rng *rand.Rand) {
	end, cancel := context.WithTimeout(ctx, f.For)
	defer cancel()
	for end.Err() == nil {
		node := rng.IntN(r.World.Nodes())
		r.try(r.World.Drain(end, node), "drain %s", mesh.Node(node))
		r.sleep(end, jobMin+time.Duration(rng.Int64N(int64(jobMin))))
		r.undrain(ctx, node)
		r.try(r.World.Rebalance(end), "rebalance")
		r.sleep(end, jobMin+time.Duration(rng.Int64N(int64(jobMin))))
	}
}

// jobMin is how long a drain, and what follows it, has at least.
const jobMin = 3 * time.Second

// moveVotes moves votes until its time is over. No fence can be appended for six
// seconds after each: faults beside it last longer for that.
func (r *Runner) moveVotes(ctx context.Context, f Fault, rng *rand.Rand) {
	end, cancel := context.WithTimeout(ctx, f.For)
	defer cancel()
	for end.Err() == nil {
		what, err := r.World.MoveVote(ctx, rng.Uint64())
		r.try(err, "move the vote of %s", what)
		r.sleep(end, jobMin+time.Duration(rng.Int64N(int64(jobMin))))
	}
}

func (r *Runner) sever(ctx context.Context, f Fault) {
	end, cancel := context.WithTimeout(ctx, f.For)
	defer cancel()
	r.logf("sever all streams between nodes for %v", f.For.Round(time.Millisecond))
	for end.Err() == nil {
		for i := range r.World.Nodes() {
			for j := range i {
				r.World.Sever(mesh.Node(i), mesh.Node(j))
			}
		}
		r.sleep(end, f.For/severTimes)
	}
}

// severTimes is how often streams break while they are severed: each time finds
// some command with its answer under way.
const severTimes = 12

func (r *Runner) flap(ctx context.Context, f Fault, node int) {
	end, cancel := context.WithTimeout(ctx, f.For)
	defer cancel()
	for i := 0; end.Err() == nil; i++ {
		part := Fault{Kind: CutOff, For: f.For / 8}
		r.network(end, part, node, r.around(node, true, true, true))
		r.sleep(end, f.For/8)
	}
}

// newsDelay is how late a node learns what the log says: as much as a follower
// takes without calling an election (the local profile's heartbeat timeout is
// 500 ms), since a node that knows no leader can propose nothing.
const newsDelay = 300 * time.Millisecond

// fenceLate stops an owner until it is fenced, has other clients attach to its
// sessions, so that these have new owners, and lets it go on: for newsDelay it does not
// learn what is committed, while all that its clients had sent waits in its sockets, and
// what it proposes arrives. That must come to nothing.
func (r *Runner) fenceLate(ctx context.Context, f Fault, node int) {
	leader := r.resolve(ctx, Fault{Target: Leader, Pick: f.Pick})
	if node == leader {
		node = (leader + 1) % r.World.Nodes()
	}
	defer r.take(node)()
	slow := []hop{{mesh.Node(leader), mesh.Node(node), mesh.Policy{Dialled: newsDelay}}}
	end, cancel := context.WithTimeout(ctx, f.For)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.network(ctx, f, node, slow)
	}()
	name := mesh.Node(node)
	for end.Err() == nil && r.try(r.World.Pause(node), "pause %s, to which %s talks slowly", name, mesh.Node(leader)) {
		for !r.try(r.World.Fence(end, node), "fence %s", name) && r.sleep(end, newsDelay) {
		}
		r.World.Displace()
		r.sleep(end, newsDelay) // the new owners answer
		r.try(r.World.Resume(node), "resume %s", name)
		r.sleep(end, 4*newsDelay) // by then it has registered anew, and may own again
	}
	<-done
}
