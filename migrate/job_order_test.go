package migrate

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// Two of three are drained at once: all end at the third, none goes to and fro.
func TestTwoDrainsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2", "n3")
		for i := range 100 {
			w.open(fmt.Sprint("s", i), fmt.Sprint("n", 1+i%2), true)
		}
		_, end := w.director()
		defer end()
		a := w.startDrain("n1")
		time.Sleep(20 * time.Millisecond) // some are on their way to n2
		b := w.startDrain("n2")
		a, b = w.over(a.GetId()), w.over(b.GetId())
		if a.GetState() != jobDone || b.GetState() != jobDone || w.owned()["n3"] != 100 {
			t.Errorf("n3 has %d; jobs %v, %v", w.owned()["n3"], a, b)
		}
		for i := range 100 {
			if h := w.row(fmt.Sprint("s", i)).GetHistory(); len(h) > 3 {
				t.Errorf("s%d went to and fro: %v", i, h)
			}
		}
	})
}

// Two nodes drained towards each other: the second drain is refused; when its
// only target dies, the first ends with a typed reason.
func TestDrainTowardsEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		for i := range 40 {
			w.open(fmt.Sprint("s", i), "n1", true)
		}
		w.set("prepare", func(context.Context) error { time.Sleep(time.Second); return nil })
		_, end := w.director(func(c *DirectorConfig) { c.DrainConcurrency = 2 })
		defer end()
		j := w.startDrain("n1")
		res := w.apply([]*wire.Command{{Kind: &wire.Command_StartJob{StartJob: &wire.StartJob{
			Nonce: []byte("towards"), Kind: wire.JobKind_JOB_KIND_DRAIN, Worker: "n2",
		}}}})
		if res[0].GetCode() != wire.Code_NO_TARGET {
			t.Errorf("the second drain: %v", res[0])
		}
		time.Sleep(5 * time.Second)
		w.must(fenceCommand(w, "n2"))
		time.Sleep(2 * time.Minute) // what n2 had waits for a worker
		j = w.job(j.GetId())
		if j.GetState() != jobFailed || j.GetCode() != wire.Code_NO_TARGET || j.GetFailed() == 0 {
			t.Errorf("job %v", j)
		}
	})
}

// A drain that came as a worker's state alone becomes a job, also a shutdown's.
func TestDrainingWorkerGetsAJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := drainWorld(t, 20)
		_, end := w.director()
		defer end()
		w.must(&wire.Command{Kind: &wire.Command_SetWorkerState{SetWorkerState: &wire.SetWorkerState{
			Id: "n1", State: wire.WorkerState_WORKER_STATE_DRAINING, UntilRegister: true, By: "shutdown of n1",
		}}})
		w.drained("n1")
		time.Sleep(time.Second)
		job := w.job(w.worker("n1").GetJob())
		if job.GetState() != jobDone || job.GetMoved() != 20 || job.GetBy() != "shutdown of n1" || !w.worker("n1").GetUntilRegister() {
			t.Errorf("job %v, worker %v", job, w.worker("n1"))
		}
		// A session that comes late is drained, too.
		w.open("late", "n1", false)
		w.drained("n1")
		w.quiet()
	})
}

// Jobs of a higher priority come first.
func TestJobPriority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2", "n3")
		for i := range 200 {
			w.open(fmt.Sprint("s", i), fmt.Sprint("n", 1+i%2), false)
		}
		_, end := w.director(func(c *DirectorConfig) { c.DrainConcurrency = 2 })
		defer end()
		low := w.startDrain("n1", func(c *wire.StartJob) { c.Priority = 5 })
		high := w.startDrain("n2", func(c *wire.StartJob) { c.Priority = 1 })
		high = w.over(high.GetId())
		first := 0
		for _, m := range w.history(400) {
			if m.GetJob() == low.GetId() && m.GetBegunUs() < high.GetEndedUs() {
				first++
			}
		}
		if first > 6 { // some begin while the last of the others end
			t.Errorf("%d of the low priority moved first", first)
		}
		w.over(low.GetId())
	})
}

// Requests beyond the room wait, and are served by priority.
func TestRequestsQueueByPriority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		release := make(chan struct{})
		w.set("prepare", func(context.Context) error { <-release; return nil })
		d, end := w.director(func(c *DirectorConfig) { c.MovesMax = 1 })
		defer end()
		done := make(chan error, 10)
		for i, p := range []uint32{3, 5, 4, 1, 2, 1} {
			id := fmt.Sprint("s", i)
			w.open(id, "n1", false)
			req := request(id, "n2")
			req.Priority = p
			go func() {
				_, err := d.Migrate(context.Background(), req)
				done <- err
			}()
			synctest.Wait()
		}
		if _, err := d.Migrate(t.Context(), request("s5", "n2")); wire.CodeOf(err) != wire.Code_MIGRATION_ACTIVE {
			t.Errorf("a second request while the first waits: %v", err)
		}
		close(release)
		for range 6 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		var order []string
		for _, m := range w.history(10) {
			order = append(order, m.GetSession())
		}
		slices.Reverse(order)
		if fmt.Sprint(order) != "[s0 s3 s5 s4 s2 s1]" {
			t.Errorf("served in the order %v", order)
		}
	})
}
