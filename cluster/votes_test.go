package cluster

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/seam"
)

// stale is a network with one server, to which the first connections are of no use.
type stale struct {
	raftNetwork
	kept  int           // connections to its former process
	hangs time.Duration // so long it takes until that shows
	asked int
}

func (s *stale) answer() error {
	if s.asked++; s.asked > s.kept {
		return nil
	}
	time.Sleep(s.hangs)
	return errors.New("connection reset by peer")
}

func (s *stale) RequestVote(_ raft.ServerID, _ raft.ServerAddress, _ *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	err := s.answer()
	resp.Granted = err == nil
	return err
}

func (s *stale) RequestPreVote(_ raft.ServerID, _ raft.ServerAddress, _ *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	err := s.answer()
	resp.Granted = err == nil
	return err
}

// TestVotesOfRestartedServers are got over the first connection that is to the present
// process.
func TestVotesOfRestartedServers(t *testing.T) {
	for _, c := range []struct {
		name  string
		net   stale
		asked int
		vote  bool
	}{
		{"well", stale{}, 1, true},
		{"restarted", stale{kept: raftConnsKept}, raftConnsKept + 1, true},
		{"down", stale{kept: 100}, raftConnsKept + 1, false},
		{"silent", stale{kept: 100, hangs: 3 * time.Second}, 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for _, pre := range []bool{false, true} {
					n := c.net
					tr := repeatedVotes{&n, seam.OSClock{}, time.Second}
					var vote raft.RequestVoteResponse
					var preVote raft.RequestPreVoteResponse
					err := error(nil)
					if pre {
						err = tr.RequestPreVote("s", "", &raft.RequestPreVoteRequest{}, &preVote)
					} else {
						err = tr.RequestVote("s", "", &raft.RequestVoteRequest{}, &vote)
					}
					if got := vote.Granted || preVote.Granted; got != c.vote || (err == nil) != c.vote || n.asked != c.asked {
						t.Errorf("pre %v: vote %v, %v, asked %d times, want %v, %d", pre, got, err, n.asked, c.vote, c.asked)
					}
				}
			})
		})
	}
}
