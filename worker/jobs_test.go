package worker

import (
	"sync"
	"sync/atomic"
	"testing"
)

// TestJobsEndWhileOthersCome: whoever waits leaves behind nothing that runs,
// whatever is still brought meanwhile; jobs that are waited for may bring more.
func TestJobsEndWhileOthersCome(t *testing.T) {
	for range 200 {
		j := newJobs()
		var running, ran atomic.Int64
		job := func() {
			running.Add(1)
			ran.Add(1)
			running.Add(-1)
		}
		chained := make(chan struct{})
		j.run(func() {
			j.run(func() { close(chained) })
		})
		var others sync.WaitGroup
		for range 4 {
			others.Go(func() {
				for range 50 {
					j.run(job)
				}
			})
		}
		j.wait()
		<-chained
		after := ran.Load()
		if n := running.Load(); n != 0 {
			t.Fatalf("%d jobs run after the wait", n)
		}
		others.Wait()
		if n := ran.Load(); n != after {
			t.Fatalf("%d jobs ran after the wait", n-after)
		}
		j.wait() // again
	}
}
