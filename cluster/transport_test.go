package cluster

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/seam"
)

// stillClock stands until the test moves it.
type stillClock struct {
	seam.OSClock
	now time.Duration
}

func (c *stillClock) Now() time.Duration { return c.now }

// sentLog is a pipeline that notes what it is given.
type sentLog struct {
	raft.AppendPipeline
	sent []*raft.AppendEntriesRequest
	err  error
}

func (s *sentLog) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	s.sent = append(s.sent, args)
	if s.err != nil {
		return nil, s.err
	}
	return unsent{args, resp}, nil
}

// TestRepeatsAreLeftOut: of requests that say nothing new, one each Repeat is sent;
// all that say something are.
func TestRepeatsAreLeftOut(t *testing.T) {
	const every = 500 * time.Millisecond
	clock := &stillClock{now: time.Hour}
	noRoute := func(context.Context, string) (net.Conn, error) { return nil, errors.New("refused") }
	layer := newStreamLayer("here", time.Second, noRoute, nil, nil)
	trans := newTransport(raft.NewNetworkTransport(layer, 1, time.Second, nil), clock, every)
	defer func() { _ = trans.Close() }()
	inner := &sentLog{}
	p := &pipeline{AppendPipeline: inner, t: trans, to: "there"}

	idle := raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 7, PrevLogTerm: 2, LeaderCommitIndex: 7}
	send := func(what string, req raft.AppendEntriesRequest, want bool) {
		t.Helper()
		before := len(inner.sent)
		f, err := p.AppendEntries(&req, &raft.AppendEntriesResponse{})
		if got := len(inner.sent) > before; got != want || (f == nil) != (err != nil) {
			t.Errorf("%s: sent %v, want %v (%v)", what, got, want, err)
		}
	}
	send("the first", idle, true)
	clock.now += every - 1
	send("a repeat", idle, false)
	clock.now++
	send("a repeat after a while", idle, true)
	send("a repeat", idle, false)

	for what, change := range map[string]func(*raft.AppendEntriesRequest){
		"a new term":     func(r *raft.AppendEntriesRequest) { r.Term++ },
		"a new place":    func(r *raft.AppendEntriesRequest) { r.PrevLogEntry++ },
		"another past":   func(r *raft.AppendEntriesRequest) { r.PrevLogTerm++ },
		"a commit":       func(r *raft.AppendEntriesRequest) { r.LeaderCommitIndex++ },
		"something else": func(r *raft.AppendEntriesRequest) { r.Term, r.LeaderCommitIndex = 9, 9 },
	} {
		clock.now += every
		send("back to where it was", idle, true)
		send("a repeat", idle, false)
		news := idle
		change(&news)
		send(what, news, true)
		send(what+", repeated", news, false)
	}

	send("back to where it was", idle, true)
	full := idle
	full.Entries = []*raft.Log{{Index: 8}}
	send("entries", full, true)
	send("the same entries", full, true)
	send("what follows entries", idle, true)
	send("a repeat", idle, false)

	// A follower that cannot be reached may come back with its memory gone.
	if trans.AppendEntries("id", "elsewhere", &raft.AppendEntriesRequest{}, &raft.AppendEntriesResponse{}) == nil {
		t.Fatal("a node without a route was reached")
	}
	send("a repeat, as another node is away", idle, false)
	if trans.AppendEntries("id", "there", &raft.AppendEntriesRequest{}, &raft.AppendEntriesResponse{}) == nil {
		t.Fatal("a node without a route was reached")
	}
	send("a repeat, as a heartbeat has failed", idle, true)
	send("a repeat", idle, false)

	clock.now += every
	inner.err = errors.New("broken")
	send("what breaks", idle, true)
	inner.err = nil
	send("what follows a break", idle, true)
}
