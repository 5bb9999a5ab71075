// Package nemesis decides what goes wrong, when, and for how long, and does it.
// The plan follows from the seed alone; whom "leader" or "owner" hits is found
// out when the time comes, and logged.
package nemesis

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"time"
)

// Kind of fault.
type Kind string

const (
	Kill      Kind = "kill"         // SIGKILL, restart after For
	Pause     Kind = "pause"        // SIGSTOP, SIGCONT after For
	Isolate   Kind = "isolate"      // a node from all other nodes; clients reach it
	CutOff    Kind = "cut-off"      // a node from everybody
	OneWayIn  Kind = "one-way-in"   // a node hears no other node
	OneWayOut Kind = "one-way-out"  // no other node hears it
	Halves    Kind = "halves"       // two groups, clients on both sides
	Ring      Kind = "ring"         // each node hears only one neighbour
	Bridge    Kind = "bridge"       // two nodes see each other only through a third
	ClientCut Kind = "client-cut"   // clients from the owner of a session, no more
	Slow      Kind = "slow"         // delay and jitter everywhere
	Lossy     Kind = "lossy"        // packets lost and duplicated everywhere
	Sever     Kind = "sever"        // all streams between nodes reset, again and again
	MoveLead  Kind = "move-leader"  // leadership handed on
	MoveVote  Kind = "move-vote"    // a voter's vote goes to a spare, and on
	Drain     Kind = "drain"        // a node drained, undrained after For
	Migrate   Kind = "migrate"      // random sessions moved to random nodes
	Roll      Kind = "rolling"      // every node stopped in order and started again
	KillAll   Kind = "kill-all"     // all at once, restart after For
	PauseKill Kind = "pause-kill"   // SIGSTOP, then SIGKILL, then restart
	Flap      Kind = "flap"         // a node cut off and back in quick turns
	KillTwice Kind = "kill-restart" // killed again as soon as it runs
	FenceLate Kind = "fence-late"   // an owner stopped and fenced, and slow to learn of it when it goes on
	Late      Kind = "late-answers" // an owner stopped, while what it sent a client host is under way for as long
	Oversleep Kind = "oversleep"    // an owner stopped until another has taken its place
	Jobs      Kind = "jobs"         // all the while: one node after the other drained, sessions rebalanced
	Reorder   Kind = "reorder"      // packets overtake each other everywhere
	Rate      Kind = "rate-limit"   // a node's links carry little
	DiskFull  Kind = "disk-full"    // a node's disk has no room
	SyncFail  Kind = "fsync-error"  // a node's disk cannot sync, and forgets what it should have
	DiskStall Kind = "disk-stall"   // writes to a node's disk do not end
	FlipLog   Kind = "flip-log"     // a bit of a killed node's log is flipped
	FlipSnap  Kind = "flip-snap"    // a bit of its newest snapshot
	CutFile   Kind = "cut-file"     // its log, its log's metadata, or a snapshot is cut short
	Wipe      Kind = "wipe"         // its data directory is removed: a new voter comes in its place
	Skew      Kind = "clock-skew"   // each node's clock runs at another rate
	Step      Kind = "clock-step"   // wall clocks jump by up to a day
	LinkDown  Kind = "link-down"    // a node's link is down; only where nodes have networks of their own
	Sleep     Kind = "sleep"        // a node's machine sleeps: its timers' clock stands still
)

// Kinds lists all faults that a plan draws from, in a fixed order.
var Kinds = []Kind{
	Kill, Pause, Isolate, CutOff, OneWayIn, OneWayOut, Halves, Ring, Bridge, ClientCut, Slow, Lossy,
	Sever, MoveLead, MoveVote, Drain, Migrate, Roll, KillAll, PauseKill, Flap, KillTwice, FenceLate, Late, Oversleep,
	Reorder, Rate, DiskFull, SyncFail, DiskStall, FlipLog, FlipSnap, CutFile, Wipe, Skew, Step, Sleep, Jobs,
}

// Target selectors besides node names.
const (
	Leader = "leader"
	Owner  = "owner" // of the session drawn by Pick
)

// Fault is one step of a plan.
type Fault struct {
	At     time.Duration `json:"at"`  // since the run began
	For    time.Duration `json:"for"` // until it is undone
	Kind   Kind          `json:"kind"`
	Target string        `json:"target,omitempty"`
	Pick   uint64        `json:"pick"` // randomness for choices at run time
}

func (f Fault) String() string {
	return fmt.Sprintf("%6.2fs %s %s for %v", f.At.Seconds(), f.Kind, f.Target, f.For.Round(time.Millisecond))
}

// Quarter is how a run is divided: three quarters with faults, one calm.
const (
	quarterMin = 4 * time.Second
	quarterMax = 20 * time.Second
	quarters   = 9 // of a short run
)

// Plan draws the faults of a run of the given length over nodes n1…nN: for each
// quarter a few kinds. Every kind comes once before any comes again; Jobs go on
// from the beginning to the end. warm is how long the start stays calm.
func Plan(seed uint64, length, warm time.Duration, nodes int, kinds []Kind) []Fault {
	if len(kinds) == 0 {
		return nil
	}
	rng := rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15))
	var out []Fault
	if i := slices.Index(kinds, Jobs); i >= 0 {
		kinds = slices.Delete(slices.Clone(kinds), i, i+1)
		out = append(out, Fault{At: warm, For: length - warm, Kind: Jobs, Pick: rng.Uint64()})
		if len(kinds) == 0 {
			return out
		}
	}
	var deck []Kind
	draw := func() Kind {
		if len(deck) == 0 {
			deck = append(deck, kinds...)
			rng.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
		}
		k := deck[0]
		deck = deck[1:]
		return k
	}
	quarter := min(max(length/quarters, quarterMin), quarterMax)
	for q := 0; ; q++ {
		begin := warm + time.Duration(q)*quarter
		if begin+quarter > length {
			break
		}
		if q%4 == 3 {
			continue // calm
		}
		for range 1 + rng.IntN(3) {
			f := Fault{Kind: draw(), Target: target(rng, nodes), Pick: rng.Uint64()}
			f.At = begin + time.Duration(rng.Int64N(int64(quarter)/4))
			// Long enough for a failover now and then, and too short for one.
			f.For = quarter/5 + time.Duration(rng.Int64N(int64(quarter)*4/5))
			f.For = min(f.For, begin+quarter-f.At)
			out = append(out, f)
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].At < out[j].At })
	return out
}

func target(rng *rand.Rand, nodes int) string {
	switch rng.IntN(4) {
	case 0:
		return Leader
	case 1:
		return Owner
	}
	return fmt.Sprintf("n%d", 1+rng.IntN(nodes))
}
