package matrix

import (
	"sync"

	"github.com/baton-cluster/baton/wire"
)

// stepNames are the points of a move at which a fault can strike, in their
// order. The number is the step's in ARCHITECTURE.md, "Life of a pivot"; a bare number is the
// moment before it is done.
var stepNames = []string{
	"1",           // the move is about to be asked for
	"2",           // who may object is asked
	"3",           // Begin is proposed
	"3-committed", // and committed, but the director has not heard of it
	"3-told",      // the target is told
	"4",           // the source is about to invite its clients
	"4-warm",      // all of them are warm, but the director has not heard of it
	"5",           // the source is about to freeze
	"6",           // frozen, captured, sealed: the snapshot is about to leave
	"6-arrived",   // the target has it
	"7",           // the pivot is proposed
	"7-committed", // and committed, but the target has not heard of it
	"8",           // the target serves, but the source has not heard of it
	"9",           // the end is proposed
	"9-committed", // and committed
}

// steps strikes once, at one point.
type steps struct {
	w *world

	mu     sync.Mutex
	at     string
	strike func()
	struck chan struct{}
}

func newSteps(w *world) *steps { return &steps{w: w, struck: make(chan struct{})} }

// arm has strike called when a move first comes to a point.
func (s *steps) arm(at string, strike func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at, s.strike = at, strike
}

// reach is called, without any lock, when a move is at a point. When it returns,
// the fault has struck.
func (s *steps) reach(at string) {
	s.mu.Lock()
	strike := s.strike
	if at == "" || at != s.at || strike == nil {
		s.mu.Unlock()
		return
	}
	s.strike = nil
	s.mu.Unlock()
	strike()
	close(s.struck)
}

// proposed and committed are the points of the three commits.
func (s *steps) proposed(cmds []*wire.Command)  { s.commit(cmds, "") }
func (s *steps) committed(cmds []*wire.Command) { s.commit(cmds, "-committed") }

func (s *steps) commit(cmds []*wire.Command, suffix string) {
	for _, c := range cmds {
		switch {
		case c.GetBegin() != nil:
			s.reach("3" + suffix)
		case c.GetPivot() != nil:
			s.reach("7" + suffix)
		case c.GetEnd() != nil:
			s.reach("9" + suffix)
		}
	}
}
