package sim

import (
	"fmt"
	"testing"
	"time"

	"github.com/baton-cluster/baton"
)

// TestJobIsJudgedAfterAnElection: a drain is done, and before its follower has asked what
// it may have broken, the cluster has no quorum for a while. The report comes all the same.
func TestJobIsJudgedAfterAnElection(t *testing.T) {
	scene(t, func(s *stage) {
		m := s.followers()[0]
		for i := range 5 {
			s.openAt(fmt.Sprint("s-", i), m, time.Hour)
		}
		asked := 0
		r, err := s.admin.Drain(s.c.within(patience), m.name, baton.DrainOptions{}, func(r baton.DrainReport) {
			if !r.Ended() {
				return
			}
			if asked++; asked == 1 {
				for _, o := range s.machines {
					s.isolate(o)
				}
				s.spawn(func() {
					time.Sleep(10 * time.Second)
					s.net.heal()
				})
			}
		})
		if err != nil || r.State != "done" || r.Moved < 5 || r.Lost+r.Duplicated > 0 {
			t.Errorf("%+v, %v", r, err)
		}
		if asked < 2 {
			t.Errorf("the end of the drain was looked at %d times: the cut fell elsewhere", asked)
		}
	})
}
