package cluster

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/seam"
)

// transport is raft's own over our streams, less what raft says twice. So that
// followers learn of a commit that no further entry announces, raft repeats its last
// request every Timings.Commit for as long as a leader is idle, in full and through
// the follower's main loop; that was most of what an idle cluster did. Here a repeat
// is sent at most every repeatEvery. Heartbeats are apart from it and all sent: who
// is heard, and so elections and the leader's own lease, is as it was.
type transport struct {
	*raft.NetworkTransport
	clock seam.Clock
	// repeatEvery is how often a request without news is sent all the same.
	repeatEvery time.Duration

	mu sync.Mutex
	// lost counts the calls to each address that failed: a node that has started
	// again has forgotten what is committed, and is to be told at once.
	lost map[raft.ServerAddress]uint64
}

func newTransport(inner *raft.NetworkTransport, clock seam.Clock, repeatEvery time.Duration) *transport {
	return &transport{NetworkTransport: inner, clock: clock, repeatEvery: repeatEvery, lost: map[raft.ServerAddress]uint64{}}
}

// AppendEntries implements raft.Transport. All heartbeats come this way.
func (t *transport) AppendEntries(id raft.ServerID, to raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	err := t.NetworkTransport.AppendEntries(id, to, args, resp)
	if err != nil {
		t.mu.Lock()
		t.lost[to]++
		t.mu.Unlock()
	}
	return err
}

func (t *transport) losses(to raft.ServerAddress) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lost[to]
}

// AppendEntriesPipeline implements raft.Transport.
func (t *transport) AppendEntriesPipeline(id raft.ServerID, to raft.ServerAddress) (raft.AppendPipeline, error) {
	p, err := t.NetworkTransport.AppendEntriesPipeline(id, to)
	if err != nil {
		return nil, err
	}
	return &pipeline{AppendPipeline: p, t: t, to: to}, nil
}

// pipeline leaves out the repeats. What it was given before has arrived, or will,
// or the connection breaks: then the failing heartbeats end the silence, the next
// request finds the break, and raft starts over.
type pipeline struct {
	raft.AppendPipeline
	t  *transport
	to raft.ServerAddress

	// Of the last request that was sent; raft has one sender to a pipeline.
	sent tidings
	at   time.Duration
}

// tidings is what a request without entries tells its follower; the zero value is
// what no request says, as terms begin at 1.
type tidings struct {
	term, prevIndex, prevTerm, commit uint64
	lost                              uint64 // no part of the request: what it had seen fail
}

// AppendEntries implements raft.AppendPipeline. A request that is not sent has no
// answer either, so that nobody takes it for a sign of life.
func (p *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	now := p.t.clock.Now()
	told := tidings{args.Term, args.PrevLogEntry, args.PrevLogTerm, args.LeaderCommitIndex, p.t.losses(p.to)}
	if len(args.Entries) == 0 && told == p.sent && now-p.at < p.t.repeatEvery {
		return unsent{args, resp}, nil
	}
	f, err := p.AppendPipeline.AppendEntries(args, resp)
	p.sent, p.at = tidings{}, now
	if err == nil && len(args.Entries) == 0 {
		p.sent = told
	}
	return f, err
}

// unsent stands for a repeat that was left out.
type unsent struct {
	args *raft.AppendEntriesRequest
	resp *raft.AppendEntriesResponse
}

func (unsent) Error() error                            { return nil }
func (unsent) Start() time.Time                        { return time.Time{} }
func (u unsent) Request() *raft.AppendEntriesRequest   { return u.args }
func (u unsent) Response() *raft.AppendEntriesResponse { return u.resp }
