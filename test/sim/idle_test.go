package sim

import (
	"testing"
	"time"
)

// TestIdleCluster: nobody asks a cluster for anything, and nothing in it is due,
// so its log time stands still. Then sessions are opened.
func TestIdleCluster(t *testing.T) {
	scene(t, func(s *stage) {
		for _, m := range append(s.followers()[:1], s.leader()) {
			time.Sleep(3 * time.Minute)
			s.bump(s.openAt("first-of-"+m.name, m, time.Hour))
		}
	})
}
