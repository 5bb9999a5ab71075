package cluster

import (
	"time"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/seam"
)

// repeatedVotes asks for a vote again where the connection breaks. Raft keeps some
// connections to a server for later, which are to a former process once that has been
// restarted, and takes one that breaks for a refusal: the election is lost, and the
// next comes an election time later, after a deploy when all have been restarted most
// of all. A vote or pre-vote may be asked for any number of times.
type repeatedVotes struct {
	raftNetwork
	clock seam.Clock
	limit time.Duration // after which nothing is repeated
}

func (t repeatedVotes) RequestVote(to raft.ServerID, addr raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return t.repeat(func() error {
		*resp = raft.RequestVoteResponse{}
		return t.raftNetwork.RequestVote(to, addr, req, resp)
	})
}

func (t repeatedVotes) RequestPreVote(to raft.ServerID, addr raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return t.repeat(func() error {
		*resp = raft.RequestPreVoteResponse{}
		return t.raftNetwork.RequestPreVote(to, addr, req, resp)
	})
}

// repeat asks until there is an answer, each kept connection has been used up, or the
// time is.
func (t repeatedVotes) repeat(ask func() error) (err error) {
	began := t.clock.Now()
	for range raftConnsKept + 1 {
		if err = ask(); err == nil || t.clock.Now()-began > t.limit {
			return err
		}
	}
	return err
}
