package sim

import (
	"testing"
	"time"

	"github.com/baton-cluster/baton"
)

// TestSuspendedMachine: a machine sleeps for ten seconds without its process
// noticing: its timers stand still, its boot clock does not. Its lease is over,
// and so is its incarnation: nothing more is answered under either, and no client
// loses anything.
func TestSuspendedMachine(t *testing.T) {
	scene(t, func(s *stage) {
		for _, m := range append(s.followers()[:1], s.leader()) {
			session := s.openAt("of-"+m.name, m, time.Hour)
			before := session.Epoch()
			stop := s.reading(session)
			time.Sleep(time.Second)
			s.note("%s has slept", m.name)
			m.clock.steps.slept.Add(int64(10 * time.Second))
			slept := time.Now()
			s.bump(s.again(session))
			time.Sleep(3 * time.Second)
			leased := 0
			for _, r := range stop() {
				switch {
				case r.err != nil:
					s.violation("%s slept: a read %v", m.name, r)
				case r.sent.Before(slept):
				case r.v.Epoch == before && r.v.Leased:
					s.violation("%s slept, and still a read %v", m.name, r)
				case r.v.Leased:
					leased++
				}
			}
			if session.Epoch() == before {
				s.violation("%s slept, and its incarnation goes on", m.name)
			}
			if leased == 0 {
				s.violation("%s slept, and then nothing is read under leases any more", m.name)
			}
			s.healthy()
		}
	})
}

// TestWallClockSteps: the leader's wall clock steps back by an hour and forward by
// a day, and others lead. Nothing expires before its time, everything after it,
// and reads go on under leases.
func TestWallClockSteps(t *testing.T) {
	const ttl = 3 * time.Minute
	scene(t, func(s *stage) {
		asleep := s.openAt("asleep", s.leader(), ttl)
		must(t, asleep.Detach(s.c.within(patience)))
		left := time.Now()
		for _, step := range []time.Duration{-time.Hour, 25 * time.Hour, -48 * time.Hour} {
			leader := s.leader()
			s.note("the wall clock of %s, which leads, steps by %v", leader.name, step)
			leader.clock.steps.wall.Add(int64(step))
			awake := s.openAt("awake"+step.String(), leader, time.Hour)
			stop := s.reading(awake)
			s.bump(s.again(awake))
			time.Sleep(10 * time.Second)
			unleased := 0
			for _, r := range stop() {
				if r.err != nil {
					s.violation("a read %v", r)
				}
				if !r.v.Leased {
					unleased++
				}
			}
			if unleased > 10 { // while its client's write was under way, and the like
				s.violation("%d reads without a lease after a step of %v", unleased, step)
			}
			must(t, s.admin.TransferLeader(s.c.within(patience)))
			s.healthy()
		}
		if asleep := time.Since(left); asleep > ttl/2 {
			t.Fatalf("the scene takes too long to tell anything: %v", asleep)
		}
		again, err := s.c.c.Resume(s.c.within(patience), "asleep", asleep.Secret())
		if err != nil {
			s.violation("a session of %v is gone after %v: %v", ttl, time.Since(left), err)
			return
		}
		must(t, again.Detach(s.c.within(patience)))
		time.Sleep(2 * ttl)
		_, err = s.c.c.Resume(s.c.within(patience), "asleep", asleep.Secret())
		if code := baton.CodeOf(err); code != baton.CodeOf(baton.ErrSessionExpired) && code != baton.CodeOf(baton.ErrUnknownSession) {
			s.violation("a session of %v is attached to after %v: %v", ttl, 2*ttl, err)
		}
	})
}
