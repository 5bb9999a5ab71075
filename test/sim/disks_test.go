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

// TestAnswersOutliveTheLeadersDisk: the leader's log hangs in its syncs, and only one
// follower hears of it. Then the power of the leader fails, that follower is cut off,
// and the leader comes back without what it had not synced: what was answered is there.
func TestAnswersOutliveTheLeadersDisk(t *testing.T) {
	scene(t, func(s *stage) {
		for round := range 6 {
			leader := s.leader()
			followers := s.followers()
			knows, lacks := followers[0], followers[1]
			session := s.openAt(fmt.Sprint("s-", round), leader, time.Hour)
			s.isolate(lacks)
			leader.disk.hangSyncs()
			_, err := session.Call(s.c.within(300*time.Millisecond), "bump", nil)
			s.note("%s hangs, %s is cut off: %v", leader.name, lacks.name, err)
			leader.stop(false)
			s.net.heal()
			s.isolate(knows)
			leader.boot()
			v, readErr := session.Get(s.c.within(patience), counterKey)
			must(s.t, readErr)
			if n := string(v.Value); n != "1" && n != "2" || n == "1" && err == nil {
				s.violation("round %d: the counter is %q, after the second write was answered with %v", round, n, err)
			}
			s.net.heal()
			s.healthy()
		}
	})
}

// isolate cuts a machine off from the others, though not from clients.
func (s *stage) isolate(m *machine) {
	for _, o := range s.machines {
		if o != m {
			s.net.shape(o.ip, m.ip, func(l *link) { l.cut = true })
			s.net.shape(m.ip, o.ip, func(l *link) { l.cut = true })
		}
	}
}
