package store

import (
	"slices"
	"time"

	"github.com/baton-cluster/baton/wire"
)

const (
	// EpochLeap is how far above everything known a new cluster begins to count:
	// more than a cluster can have drawn since a backup was taken.
	EpochLeap = 1 << 32
	// EpochMax bounds the counter, so that epochs are exact in every JSON reader.
	EpochMax = 1<<53 - 1
	// restUS is for how long a new cluster assigns nothing: the longest lease there
	// is, T_MAX, by the slowest clock there may be (lease.VoterWait).
	restUS = uint64(6 * time.Second / time.Microsecond)
)

// Rebirth is what makes a new cluster out of the state of another: one that was
// backed up, or that has lost its majority (S1).
type Rebirth struct {
	ClusterID []byte // of the new cluster
	// Floor is the highest epoch that is known outside of this state; 0: none.
	Floor uint64
	// Index is the log index that the state has from then on, above Index().
	Index uint64
	Voter string // id of the only server
	// Root is the wrapped root of the key ring's next generation, NextKeys().
	Root, Nonce []byte
	WallUS      int64 // for people, and By likewise
	By          string
}

// NextKeys is the number that the next generation of keys is to have.
func (s *Store) NextKeys() uint64 {
	if len(s.keys) == 0 {
		return 1
	}
	return s.keys[len(s.keys)-1].number + 1
}

// Reborn changes the state into that of a new cluster, in which nothing of the
// former one can act: its identity and its keys are others, every incarnation is
// fenced, migrations and jobs are over, sessions are detached, the epochs leap, and
// nothing is assigned before every lease of the former cluster has run out.
//
// It is no command: it runs before there is a log. BAD_REQUEST: the floor is out
// of bounds, or a field is missing; then nothing has changed.
func (s *Store) Reborn(b Rebirth) error {
	next := max(s.epochs, b.Floor)
	switch {
	case b.Floor > EpochMax || next > EpochMax-EpochLeap:
		return wire.Errorf(wire.Code_BAD_REQUEST, "the epochs cannot begin above %d: at most %d is possible", next, uint64(EpochMax-EpochLeap))
	case !label(string(b.ClusterID)) || slices.Equal(b.ClusterID, s.clusterID) || b.Voter == "" || b.Index <= s.index ||
		len(b.Root) != wire.WrappedRootBytes || !label(string(b.Nonce)):
		return wire.Errorf(wire.Code_BAD_REQUEST, "a new cluster needs an id, keys, a voter and a place in the log of its own")
	}
	const why = "another cluster began from this state"
	s.index, s.position, s.wallUS = b.Index, Position(b.Index, 0), b.WallUS
	s.clusterID, s.epochs = b.ClusterID, next+EpochLeap
	s.endAll(why)
	s.fenceAll(why)
	s.detachSessions()
	s.joinTokens = nil // they name the former cluster
	s.keys = []generation{{
		number: s.NextKeys(), root: b.Root, nonce: b.Nonce, kinds: wire.KeyKindsAll, madeUS: s.timeUS, wallUS: b.WallUS, by: clip(b.By),
	}}
	s.voterConfig, s.voters = b.Index, []string{b.Voter}
	s.assignAfterUS = saturate(s.timeUS, restUS)
	s.events = nil
	return nil
}

// endAll ends migrations and jobs.
func (s *Store) endAll(why string) {
	for _, p := range s.ActiveMigrations() {
		m := s.migration(p.GetId())
		if m.phase == wire.Phase_PHASE_BEGUN {
			s.abort(m, why)
			continue
		}
		ended := *m
		ended.phase, ended.endedUS = wire.Phase_PHASE_COMPLETED, s.timeUS
		s.setMigration(&ended)
	}
	var open []*job
	s.jobs.Scan(func(j *job) bool {
		if j.open() {
			open = append(open, j)
		}
		return true
	})
	for _, j := range open {
		s.endJob(j, wire.JobState_JOB_STATE_CANCELLED, wire.Code_OK, why, 0)
	}
}

// fenceAll ends every incarnation. A worker that comes back is active.
func (s *Store) fenceAll(why string) {
	for _, p := range s.Workers() {
		w := *s.worker(p.GetId())
		w.state, w.untilRegister, w.reason, w.job = wire.WorkerState_WORKER_STATE_FENCED, true, why, 0
		s.setWorker(&w)
	}
}

func (s *Store) detachSessions() {
	var attached []string
	s.sessions.Scan(func(e slot) bool {
		if r := e.live; r != nil && r.attached() {
			attached = append(attached, r.id)
		}
		return true
	})
	for _, id := range attached {
		r, keys := s.edit(s.row(id))
		s.detachAll(r)
		r.change = s.position
		s.commit(r, keys)
	}
}

// resting reports that it is too early to assign anything in a new cluster.
func (s *Store) resting() bool { return s.timeUS < s.assignAfterUS }

// AssignAfterUS is the log time before which a new cluster assigns nothing; 0: it
// always could.
func (s *Store) AssignAfterUS() uint64 { return s.assignAfterUS }
