package store

import (
	"slices"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// SetVoters notes the configuration of servers at log index: the ids of those
// that vote. It is applied like an entry, in the order of the log. Only a change
// of who votes makes a new voter configuration: a worker's joining must not
// stop fences that are being counted. The events are as Apply's.
//
// It panics if index is not above the last one.
func (s *Store) SetVoters(index uint64, voters []string) []Event {
	if index <= s.index {
		panic("store: a configuration at or below the last entry")
	}
	s.index = index
	s.position = Position(index, 0)
	voters = slices.Sorted(slices.Values(voters))
	if slices.Equal(voters, s.voters) {
		return nil
	}
	s.voterConfig, s.voters = index, voters
	return []Event{{Kind: EventVoters}}
}

// Voters returns the index of the voter configuration in force, 0 if there is
// none yet, and the ids of its voters, rising. Read only.
func (s *Store) Voters() (config uint64, voters []string) { return s.voterConfig, s.voters }

// Lease is how long a lease lasts that is granted now.
func (s *Store) Lease() time.Duration { return time.Duration(leaseOr(s.leaseUS)) * time.Microsecond }

// leaseOr is us, within its bounds, or the default for 0.
func leaseOr(us uint64) uint64 {
	if us == 0 {
		us = wire.LeaseUSDefault
	}
	return min(max(us, wire.LeaseUSMin), wire.LeaseUSMax)
}

func (s *Store) applySetLease(c *wire.SetLease, res *wire.Result) {
	us := c.GetLeaseUs()
	switch {
	case us < wire.LeaseUSMin || us > wire.LeaseUSMax:
		res.Code = wire.Code_BAD_REQUEST
	case us == s.leaseUS:
		res.Duplicate = true
	default:
		s.leaseUS = us
		s.emit(Event{Kind: EventCluster})
	}
}

func voterRows(ids []string) []*wire.Voter {
	out := make([]*wire.Voter, len(ids))
	for i, id := range ids {
		out[i] = &wire.Voter{Id: id}
	}
	return out
}
