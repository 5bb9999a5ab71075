package sim

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baton-cluster/baton"
	"github.com/baton-cluster/baton/lease"
)

// goesOnWithin is the bound on what a bad disk of one server costs the others, in
// virtual time.
const goesOnWithin = 5 * time.Second

// TestBadDiskOfOneServer: the log or the vote of the leader or of a follower hangs,
// fails or is full, while sessions of all nodes are written to. Those of the other
// nodes go on at once or within the bound, and so do those of the node itself,
// elsewhere; the node says what is wrong, and stops where that does not pass.
func TestBadDiskOfOneServer(t *testing.T) {
	scene(t, func(s *stage) {
		for _, who := range []string{"leader", "follower"} {
			for _, p := range []part{partLog, partVote} {
				for what, err := range map[string]error{"hangs": nil, "fails": errors.New("input/output error"), "is full": syscall.ENOSPC} {
					ill := s.leader()
					if who == "follower" {
						ill = s.followers()[0]
					}
					s.badDisk(fmt.Sprintf("the %s of the %s, %s, %s", map[part]string{partLog: "log", partVote: "vote"}[p], who, ill.name, what), ill, p, err)
				}
			}
		}
	})
}

func (s *stage) badDisk(story string, ill *machine, p part, err error) {
	var sessions []*baton.Session
	for _, m := range s.machines {
		sessions = append(sessions, s.openAt("s-"+m.name+"-"+story, m, time.Hour))
	}
	time.Sleep(lease.VoterWait + time.Second) // votes may have moved: nobody is fenced meanwhile
	s.note("%s", story)
	ill.disk.breakPart(p, err, err == nil)
	broken := time.Now()
	var worst time.Duration
	for time.Since(broken) < 2*goesOnWithin {
		for i, session := range sessions {
			took := s.bump(session)
			if took > time.Second {
				s.note("a write to the session of %s took %v", s.machines[i].name, took)
			}
			worst = max(worst, took)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if worst > goesOnWithin {
		s.violation("%s: a write took %v", story, worst)
	}
	fell, why := ill.fallen()
	for limit := time.Now().Add(patience); !fell && time.Now().Before(limit); fell, why = ill.fallen() {
		time.Sleep(time.Second)
	}
	if !fell || why == nil {
		s.violation("%s: it has not stopped, or not said why: %v, %v", story, fell, why)
	}
	s.t.Logf("%s: the slowest write took %v; it stopped: %v", story, worst, why)
	ill.end()
	ill.boot()
	s.healthy()
}

// TestRotIsToBlame: a node that did not start on rot was right to, even if the disk
// has been restored before anybody looks.
func TestRotIsToBlame(t *testing.T) {
	scene(t, func(s *stage) {
		m := s.followers()[0]
		for m.stop(false); !m.disk.mustNotice(); {
			m.disk.rot()
		}
		m.boot()
		synctest.Wait()
		if fell, why := m.fallen(); !fell || !damaged(why) {
			s.violation("%s has started on rot: %v", m.name, why)
		}
		m.disk.heal()
		s.restartFallen()
		s.healthy()
	})
}
