package cluster

import (
	"time"

	"github.com/baton-cluster/baton/wire"
)

// Profile names a set of timings. The zero value is ProfileLAN.
type Profile string

const (
	// ProfileLocal is for nodes on one machine.
	ProfileLocal Profile = "local"
	// ProfileLAN is for nodes in one data centre.
	ProfileLAN Profile = "lan"
	// ProfileWAN is for nodes in several regions: up to about 150 ms apart.
	ProfileWAN Profile = "wan"
)

// Timings are the waits of a Profile. A zero field in Config.Timings takes the
// profile's value.
type Timings struct {
	// Heartbeat is how long a follower waits for its leader before it asks for
	// votes; Election how long a candidate waits for them. Raft draws each wait
	// from [t, 2t). Election is at least Heartbeat.
	Heartbeat, Election time.Duration
	// Lease is how long a leader goes on without hearing a majority. At most
	// Heartbeat.
	Lease time.Duration
	// Commit is how soon followers are told of a commit that no further entry
	// announces: after Commit to twice that. What other nodes act upon, barriers of
	// theirs and changes of the voters are followed by an entry (proposer.announce), so
	// hardly anybody waits for it: those do who wait for what a lost leader left
	// uncommitted. Each idle follower costs a small call per Commit.
	Commit time.Duration
	// RPC bounds one raft call, and a connection's set-up.
	RPC time.Duration
	// Call bounds one question to a peer.
	Call time.Duration
	// Forward bounds one forwarded batch. It is long, because a slow leader must
	// not be given the same work again: a change of leader, or a connection that
	// breaks, ends the wait sooner.
	Forward time.Duration
	// Find is the pause between rounds of looking for a cluster.
	Find time.Duration
	// Pilot is how often a leader looks whether the voters are at their number, and
	// VoterPace how far apart it makes changes by itself: while the voters change,
	// and for seconds after, nobody can be fenced.
	Pilot, VoterPace time.Duration
	// Batches is how many batches a leader has under way to its log; the next
	// gathers meanwhile. Where the disk sets the pace one is best: two cut the
	// same load into smaller entries, each of which pays for every disk. Where
	// distance sets it, a second one fills the wait.
	Batches int
	// Stall is how long a log append may take before the node fails itself.
	// (Raft heartbeats run apart from its disk, so a leader whose disk hangs
	// would stay leader and stop the cluster.)
	Stall time.Duration
	// Mute is how long a write may take before the node stops talking to the other
	// servers, until it has ended: they elect, and lose no more than this and an
	// election. Less than Stall.
	Mute time.Duration
	// Probe is how often a node writes to its stable store, so that one that hangs
	// or fails is noticed before it is needed.
	Probe time.Duration
	// Compact is how often a node looks whether its log has grown enough for a snapshot.
	Compact time.Duration
}

// Timings returns the profile's timings, or BAD_REQUEST for an unknown name.
func (p Profile) Timings() (Timings, error) {
	switch p {
	case ProfileLocal, ProfileLAN, "":
		t := Timings{
			Heartbeat: 500 * time.Millisecond,
			Election:  500 * time.Millisecond,
			Lease:     400 * time.Millisecond,
			Commit:    150 * time.Millisecond,
			RPC:       3 * time.Second,
			Call:      5 * time.Second,
			Forward:   30 * time.Second,
			Find:      200 * time.Millisecond,
			Pilot:     time.Second,
			VoterPace: 10 * time.Second,
			Batches:   1,
			Stall:     10 * time.Second,
			Mute:      2 * time.Second,
			Probe:     2 * time.Second,
			Compact:   5 * time.Second,
		}
		if p == ProfileLocal {
			t.Find = 50 * time.Millisecond
		}
		return t, nil
	case ProfileWAN:
		return Timings{
			Heartbeat: 1500 * time.Millisecond,
			Election:  1500 * time.Millisecond,
			Lease:     1200 * time.Millisecond,
			Commit:    200 * time.Millisecond, // about a round trip: links cost more here
			RPC:       10 * time.Second,
			Call:      15 * time.Second,
			Forward:   time.Minute,
			Find:      time.Second,
			Pilot:     3 * time.Second,
			VoterPace: 20 * time.Second,
			Batches:   2,
			Stall:     20 * time.Second,
			Mute:      4 * time.Second,
			Probe:     5 * time.Second,
			Compact:   5 * time.Second,
		}, nil
	}
	return Timings{}, wire.Errorf(wire.Code_BAD_REQUEST, "unknown profile %q: use local, lan or wan", string(p))
}

// or returns t with its zero fields taken from d.
func (t Timings) or(d Timings) Timings {
	for _, f := range []struct{ v, d *time.Duration }{
		{&t.Heartbeat, &d.Heartbeat}, {&t.Election, &d.Election}, {&t.Lease, &d.Lease},
		{&t.Commit, &d.Commit}, {&t.RPC, &d.RPC}, {&t.Call, &d.Call},
		{&t.Find, &d.Find}, {&t.Forward, &d.Forward}, {&t.Stall, &d.Stall},
		{&t.Mute, &d.Mute}, {&t.Probe, &d.Probe}, {&t.Pilot, &d.Pilot}, {&t.VoterPace, &d.VoterPace},
		{&t.Compact, &d.Compact},
	} {
		if *f.v <= 0 {
			*f.v = *f.d
		}
	}
	if t.Batches <= 0 {
		t.Batches = d.Batches
	}
	return t
}
