package cluster

import (
	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/wire"
)

// queue is the batcher's core: what waits to be proposed, cut into batches. It
// does no IO and locks nothing; the proposer does both.
//
// Invariant: of one group at most one unit is queued or in a batch at a time.
// Two could be swapped by a failed call between them, and the group's commands
// would apply out of order.
type queue struct {
	units    []*unit
	commands int // all that its groups have left: waiting and in batches
	bytes    int
	// waiting is the commands, and waitingBytes the bytes, of units.
	waiting, waitingBytes int
	fewer                 int // see halve; 0: batches are as large as entries may be
}

// group is one Propose call.
type group struct {
	cmds    []*wire.Command
	sizes   []int
	results []*wire.Result
	done    func([]*wire.Result, error)
	// forwarded: it came from another node, which proposes it again by itself;
	// here an unknown outcome is answered, not resolved.
	forwarded bool

	// Most groups are one command: all that belongs to it is made at once.
	first     unit
	oneSize   [1]int
	oneResult [1]*wire.Result
}

// unit is a run of a group's commands that goes into one entry.
type unit struct {
	g        *group
	from, to int
	bytes    int
	// alone: it is sent in a batch of its own, because a batch with it was
	// refused as a whole.
	alone bool
}

func (u *unit) commands() int { return u.to - u.from }

// batch becomes one entry, or one call to the leader.
type batch struct {
	units    []*unit
	commands int
	bytes    int
}

// list returns the batch's commands in order.
func (b *batch) list() []*wire.Command {
	cmds := make([]*wire.Command, 0, b.commands)
	for _, u := range b.units {
		cmds = append(cmds, u.g.cmds[u.from:u.to]...)
	}
	return cmds
}

// awaited reports whether the batch holds what other nodes act upon when their
// own state machines have it. Everything else reaches who waits for it as a
// result.
func (b *batch) awaited() bool {
	for _, u := range b.units {
		for _, c := range u.g.cmds[u.from:u.to] {
			switch c.GetKind().(type) {
			case *wire.Command_Begin, *wire.Command_Abort, *wire.Command_Assign, *wire.Command_FenceWorker,
				*wire.Command_RegisterWorker, *wire.Command_SetWorkerState, *wire.Command_RotateKeys:
				return true
			case *wire.Command_Tick:
				if u.g.forwarded { // a barrier of another node's, which waits for it
					return true
				}
			}
		}
	}
	return false
}

// newGroup checks and measures cmds: BAD_REQUEST for a command that no node
// could apply, FRAME_TOO_LARGE for one over CommandBytesMax.
func newGroup(cmds []*wire.Command, done func([]*wire.Result, error)) (*group, error) {
	g := &group{cmds: cmds, done: done}
	if len(cmds) == 1 {
		g.sizes, g.results = g.oneSize[:], g.oneResult[:0]
	} else {
		g.sizes, g.results = make([]int, len(cmds)), make([]*wire.Result, 0, len(cmds))
	}
	for i, c := range cmds {
		if c.GetKind() == nil {
			return nil, wire.Errorf(wire.Code_BAD_REQUEST, "command %d of %d is of no kind", i+1, len(cmds))
		}
		n := proto.Size(c)
		if n > CommandBytesMax {
			return nil, wire.Errorf(wire.Code_FRAME_TOO_LARGE, "a command of %d bytes is over the limit of %d", n, CommandBytesMax)
		}
		g.sizes[i] = n + commandOverheadBytes
	}
	return g, nil
}

// add queues a group, or refuses it with OVERLOADED: then nothing of it is
// proposed.
func (q *queue) add(g *group) error {
	bytes := 0
	for _, n := range g.sizes {
		bytes += n
	}
	// A group that finds the queue empty is always taken, whatever its size.
	if q.commands > 0 && (q.commands+len(g.cmds) > PendingCommandsMax || q.bytes+bytes > PendingBytesMax) {
		return wire.Errorf(wire.Code_OVERLOADED, "%d commands are waiting for the log: slow down and try again", q.commands)
	}
	q.commands += len(g.cmds)
	q.bytes += bytes
	q.push(g, 0)
	return nil
}

// push queues the group's next unit: as many commands from place from on as one
// entry takes.
func (q *queue) push(g *group, from int) {
	u := &g.first
	if from > 0 {
		u = new(unit)
	}
	*u = unit{g: g, from: from, to: from}
	for u.to < len(g.cmds) && u.commands() < q.commandsMax() {
		if u.bytes+g.sizes[u.to] > wire.EntryBytesMax && u.commands() > 0 {
			break
		}
		u.bytes += g.sizes[u.to]
		u.to++
	}
	q.units = append(q.units, u)
	q.count(u, 1)
}

// count adds a unit to what waits (sign 1), or takes it away (-1).
func (q *queue) count(u *unit, sign int) {
	q.waiting += sign * u.commands()
	q.waitingBytes += sign * u.bytes
}

// empty reports whether nothing waits for a batch.
func (q *queue) empty() bool { return len(q.units) == 0 }

// commandsMax is how many commands a batch may hold.
func (q *queue) commandsMax() int {
	if q.fewer > 0 {
		return q.fewer
	}
	return wire.EntryCommandsMax
}

// next cuts a batch off the front; nil if nothing waits. It holds at most
// commandsMax commands and EntryBytesMax bytes, unless one command is
// larger: that travels alone.
func (q *queue) next() *batch {
	if len(q.units) == 0 {
		return nil
	}
	b := &batch{}
	for len(q.units) > 0 {
		u := q.units[0]
		if len(b.units) > 0 && (u.alone || b.units[0].alone ||
			b.bytes+u.bytes > wire.EntryBytesMax || b.commands+u.commands() > q.commandsMax()) {
			break
		}
		b.units = append(b.units, u)
		b.bytes += u.bytes
		b.commands += u.commands()
		q.count(u, -1)
		q.units[0] = nil
		q.units = q.units[1:]
	}
	return b
}

// settle gives a batch's results to its groups and returns those that are
// finished. A group with commands left goes to the back of the queue with them.
// results has one for each command of the batch.
func (q *queue) settle(b *batch, results []*wire.Result) []*group {
	if q.fewer *= 2; q.fewer >= wire.EntryCommandsMax {
		q.fewer = 0
	}
	finished := make([]*group, 0, len(b.units))
	for _, u := range b.units {
		u.g.results = append(u.g.results, results[:u.commands()]...)
		results = results[u.commands():]
		q.forget(u)
		if u.to < len(u.g.cmds) {
			q.push(u.g, u.to)
			continue
		}
		finished = append(finished, u.g)
	}
	return finished
}

// requeue puts a batch of unknown outcome back in front and returns the groups
// that came from other nodes, which are to be told instead.
func (q *queue) requeue(b *batch) []*group {
	var told []*group
	var kept []*unit
	for _, u := range b.units {
		if u.g.forwarded {
			told = append(told, u.g)
			q.drop(u)
			continue
		}
		kept = append(kept, u)
	}
	q.putBack(kept)
	return told
}

// refuse handles a batch that was refused as a whole: a single unit's group
// has failed and is returned; of several, each goes alone next time, so that
// one bad command does not fail its neighbours.
func (q *queue) refuse(b *batch) []*group {
	if len(b.units) == 1 {
		q.drop(b.units[0])
		return []*group{b.units[0].g}
	}
	for _, u := range b.units {
		u.alone = true
	}
	q.putBack(b.units)
	return nil
}

// halve puts a batch back in front whose results were more than the leader's answer
// holds: rows of sessions may have a megabyte. It took effect, and its commands bring
// the same results again; half of them go next time, and twice as many after each
// success.
func (q *queue) halve(b *batch) {
	q.fewer = max(1, min(b.commands, q.commandsMax())/2)
	if u := b.units[0]; len(b.units) == 1 && u.commands() > 1 {
		u.to = u.from + min(q.fewer, u.commands()/2) // the rest of its group follows it, as after any unit
		u.bytes = 0
		for _, n := range u.g.sizes[u.from:u.to] {
			u.bytes += n
		}
	}
	q.putBack(b.units)
}

// putBack puts units of a batch in front.
func (q *queue) putBack(units []*unit) {
	for _, u := range units {
		q.count(u, 1)
	}
	q.units = append(units, q.units...)
}

// takeForwarded removes the waiting groups that came from other nodes.
func (q *queue) takeForwarded() []*group {
	var told []*group
	kept := q.units[:0]
	for _, u := range q.units {
		if u.g.forwarded {
			told = append(told, u.g)
			q.count(u, -1)
			q.drop(u)
			continue
		}
		kept = append(kept, u)
	}
	clear(q.units[len(kept):])
	q.units = kept
	return told
}

// takeAll empties the queue.
func (q *queue) takeAll() []*group {
	var all []*group
	for _, u := range q.units {
		all = append(all, u.g)
		q.count(u, -1)
		q.drop(u)
	}
	q.units = nil
	return all
}

// forget uncharges a unit that is settled.
func (q *queue) forget(u *unit) {
	q.commands -= u.commands()
	q.bytes -= u.bytes
}

// drop uncharges a unit and all that its group had left after it.
func (q *queue) drop(u *unit) {
	q.forget(u)
	for _, n := range u.g.sizes[u.to:] {
		q.commands--
		q.bytes -= n
	}
}
