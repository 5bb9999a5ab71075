package search

import (
	"fmt"
	"strings"
	"testing"
)

// Two processes want a lock that is one word. With the fault, testing and
// setting it are two steps.
type locks struct{ fault, deaf bool }

type lockState struct {
	pc   [2]uint8 // 0 wants, 1 saw it free, 2 holds, 3 is done
	word uint8
}

func (locks) Init() lockState { return lockState{} }

func (m locks) Steps(s *lockState, out []Step[lockState]) []Step[lockState] {
	for i := range s.pc {
		n := *s
		who := [3]uint8{uint8(i)}
		switch {
		case s.pc[i] == 0 && s.word == 0 && m.fault:
			n.pc[i] = 1
			out = append(out, Step[lockState]{Next: n, Fair: 2, Kind: 1, Args: who})
		case s.pc[i] == 0 && s.word == 0, s.pc[i] == 1:
			n.pc[i], n.word = 2, 1
			out = append(out, Step[lockState]{Next: n, Fair: 2, Kind: 2, Args: who})
		case s.pc[i] == 2 && !m.deaf:
			n.pc[i], n.word = 3, 0
			out = append(out, Step[lockState]{Next: n, Fair: 1, Kind: 3, Args: who})
		}
	}
	return out
}

func (locks) Check(s *lockState) string {
	if s.pc == [2]uint8{2, 2} {
		return "both hold the lock"
	}
	return ""
}

func (locks) Settled(s *lockState) bool { return s.pc == [2]uint8{3, 3} }

func (locks) Tell(_ *lockState, st *Step[lockState]) string {
	return fmt.Sprintf("%d %s", st.Args[0], []string{"", "sees it free", "takes it", "gives it back"}[st.Kind])
}

func TestFindsTheShortestStory(t *testing.T) {
	rep := Run[lockState](locks{fault: true}, Limits{})
	if rep.Wrong != "both hold the lock" || len(rep.Story) != 4 {
		t.Fatalf("%+v", rep)
	}
	wrong, skipped, _ := Follow[lockState](locks{fault: true}, rep.Story)
	if wrong != rep.Wrong || len(skipped) != 0 {
		t.Errorf("its story does not lead there: %q, skipped %v", wrong, skipped)
	}
	wrong, skipped, _ = Follow[lockState](locks{}, rep.Story)
	if wrong != "" || len(skipped) == 0 {
		t.Errorf("its story leads there without the fault: %q, skipped %v", wrong, skipped)
	}
}

func TestVisitsEveryState(t *testing.T) {
	rep := Run[lockState](locks{}, Limits{})
	// Each of the two wants, holds or is done, but not both hold.
	if rep.Err() != nil || !rep.Complete || rep.States != 8 || rep.Edges != 8 || rep.Settled != 1 || rep.Depth != 4 {
		t.Errorf("%+v", rep)
	}
}

func TestLimits(t *testing.T) {
	if rep := Run[lockState](locks{}, Limits{Depth: 2}); rep.Complete || rep.Depth != 2 || rep.States != 5 {
		t.Errorf("%+v", rep)
	}
	if rep := Run[lockState](locks{}, Limits{States: 3}); rep.Complete || rep.States < 3 {
		t.Errorf("%+v", rep)
	}
}

func TestNothingLeadsToAnEnd(t *testing.T) {
	rep := Run[lockState](locks{deaf: true}, Limits{})
	if !strings.Contains(rep.Wrong, "nothing leads to an end") || len(rep.Story) != 1 {
		t.Errorf("%+v", rep)
	}
}

// ring goes round for ever.
type ring struct{}

func (ring) Init() uint8 { return 0 }
func (ring) Steps(s *uint8, out []Step[uint8]) []Step[uint8] {
	return append(out, Step[uint8]{Next: (*s + 1) % 5, Fair: 1}, Step[uint8]{Next: 9})
}
func (ring) Check(*uint8) string                  { return "" }
func (ring) Settled(s *uint8) bool                { return *s == 9 }
func (ring) Tell(s *uint8, _ *Step[uint8]) string { return fmt.Sprint("after ", *s) }

func TestCircle(t *testing.T) {
	rep := Run[uint8](ring{}, Limits{})
	if !strings.Contains(rep.Wrong, "in circles") || len(rep.Story) < 5 {
		t.Errorf("%+v", rep)
	}
}

// wide has a state for each set of so many things, and many ways to each.
type wide int

func (wide) Init() uint32 { return 0 }
func (m wide) Steps(s *uint32, out []Step[uint32]) []Step[uint32] {
	for i := range int(m) {
		if bit := uint32(1) << i; *s&bit == 0 {
			out = append(out, Step[uint32]{Next: *s | bit, Fair: 1})
		}
	}
	return out
}
func (wide) Check(*uint32) string                    { return "" }
func (m wide) Settled(s *uint32) bool                { return *s == 1<<m-1 }
func (wide) Tell(s *uint32, st *Step[uint32]) string { return fmt.Sprint(*s, st.Next) }

func TestWide(t *testing.T) {
	rep := Run[uint32](wide(16), Limits{})
	if rep.Err() != nil || rep.States != 1<<16 || rep.Edges != 16<<15 || rep.Depth != 16 || rep.Missed > 1e-9 {
		t.Errorf("%+v", rep)
	}
}

func BenchmarkWide(b *testing.B) {
	for b.Loop() {
		Run[uint32](wide(20), Limits{})
	}
	b.ReportMetric(float64(b.N)*(1<<20)/b.Elapsed().Seconds(), "states/s")
}
